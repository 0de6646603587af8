// How numbers are written, in every figure and table alike; comove.display writes the same way.
const MINUS = "\u2212", NOTHING = "\u2013", DIGITS = 3;
const RAISED = { "-": "\u207b", 0: "\u2070", 1: "\u00b9", 2: "\u00b2", 3: "\u00b3", 4: "\u2074", 5: "\u2075", 6: "\u2076", 7: "\u2077", 8: "\u2078", 9: "\u2079" };
const raised = (power) => "10" + Array.from(String(power), (digit) => RAISED[digit]).join("");
const whole = (number) => number.toLocaleString("en");
const decimals = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = (number, noun, nouns = noun + "s") => whole(number) + " " + (number === 1 ? noun : nouns);

// Three digits, zeros at the end included; powers of ten beyond 0.001 and a million.
function sizeText(value) {
  if (value === 0) return "0";
  const size = Math.abs(value), rounded = Number(size.toPrecision(DIGITS));
  if (rounded < 0.001 || rounded >= 1e6) {
    const [mantissa, power] = size.toExponential(1).split("e");
    return mantissa + "\u00d7" + raised(Number(power));
  }
  const left = Math.floor(Math.log10(rounded)) + 1;
  return decimals(left > DIGITS ? size : rounded, Math.max(0, DIGITS - left));
}

// A score with its sign; counts, such as of forgettings, have no decimals.
function scoreText(score, counts = false, plus = "+") {
  if (score === null || !Number.isFinite(score)) return NOTHING;
  return (score > 0 ? plus : score < 0 ? MINUS : "") + (counts && Math.abs(score) < 1e6 ? whole(Math.abs(score)) : sizeText(score));
}

// A number with three decimals, such as an LDS.
const fixedText = (value) => (value === null || !Number.isFinite(value) ? NOTHING : (value <= -0.0005 ? MINUS : "") + decimals(Math.abs(value), 3));

// Ticks of one axis are written alike: with as many decimals as the finest of them needs.
function tickTexts(values) {
  const most = Math.max(...values.map(Math.abs)), signed = (value, text) => (value < 0 ? MINUS : "") + text;
  if (most > 0 && (most < 0.001 || most >= 1e7)) {
    const power = Math.floor(Math.log10(most) + 1e-9);
    return values.map((value) => (value === 0 ? "0" : signed(value, Number(Math.abs(value / 10 ** power).toPrecision(3)) + "\u00d7" + raised(power))));
  }
  const fine = most * 1e-6;
  let digits = 0;
  while (digits < 6 && values.some((value) => Math.abs(Number(value.toFixed(digits)) - value) > fine)) digits++;
  return values.map((value) => (value === 0 ? "0" : signed(value, decimals(Math.abs(value), digits))));
}

// Ticks of a logarithmic axis: each as short as it can be, or all as powers of ten where some would be long.
function logTexts(values) {
  const powers = values.map((value) => Math.log10(value));
  if (powers.every((power) => Math.abs(power - Math.round(power)) < 1e-6) && (values[0] < 0.001 || values.at(-1) >= 1e5))
    return powers.map((power) => (Math.round(power) === 0 ? "1" : raised(Math.round(power))));
  return values.map((value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 }));
}
