// What the page holds: JSON, arrays as base64, sprites that are decoded when they are first shown.
const page = JSON.parse(document.getElementById("payload").textContent);
const NO_MEMBER = -1;
const HELPS = 0, HURTS = 1;

function bytesOf(name) {
  const encoded = document.getElementById("block-" + name).textContent;
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(encoded).buffer;
  const text = atob(encoded);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes.buffer;
}

const onFirstUse = (make) => { let made; return () => (made === undefined ? (made = make()) : made); };
const [methodCount, queryCount, sideCount, places] = page.shape;
const members = onFirstUse(() => new Int32Array(bytesOf("members")));
const scores = onFirstUse(() => new Float32Array(bytesOf("scores")));
const storedLosses = onFirstUse(() => new Uint16Array(bytesOf("losses")));

// The training examples at one end of a method's ranking: [{member, score, rank}].
function listOf(method, query, side) {
  const found = [];
  const start = ((method * queryCount + query) * sideCount + side) * places;
  for (let rank = 0; rank < places; rank++) {
    const member = members()[start + rank];
    if (member !== NO_MEMBER) found.push({ member, score: scores()[start + rank], rank });
  }
  return found;
}

// The mean score of an example over all queries, and how many queries list it at an end; whether that is most of them.
const means = onFirstUse(() => new Float32Array(bytesOf("means")));
const listed = onFirstUse(() => new Uint32Array(bytesOf("listed")));
const memberCount = page.train.ids.length;
const meanOf = (method, member) => means()[method * memberCount + member];
const listedIn = (method, side, member) => listed()[(method * sideCount + side) * memberCount + member];
const isTypical = (method, side, member) => page.methods[method].typical !== null && listedIn(method, side, member) > page.methods[method].typical;

// Whether a method's scores are counts.
const counted = page.methods.map((_, method) => onFirstUse(() => {
  const size = queryCount * sideCount * places;
  return scores().subarray(method * size, (method + 1) * size).every(Number.isInteger);
}));
const scoreOf = (method, score) => scoreText(score, counted[method]());

// Losses along training; queries stand before training examples.
function lossesOf(example) {
  const rows = page.losses.epochs.length;
  const span = Math.log(page.losses.high / page.losses.low);
  const stored = storedLosses().subarray(example * rows, (example + 1) * rows);
  return Array.from(stored, (step) => page.losses.low * Math.exp((step / 65535) * span));
}
const queryExample = (query) => query;
const trainExample = (member) => queryCount + member;

const className = (label) => (label < 0 ? "?" : page.classes[label] ?? String(label));
const trainClass = (member) => className(page.train.labels[member]);
const textOf = (side, index) => (page.texts ? page.texts[side][index] || "(no text was given)" : "");

// The file or line that an example comes from; empty where it is not known.
const fileOf = (side, index) => (page.files ? page.files[side][index] : "");

const idTag = (side, index) => element("span", { class: "file", title: "id " + page[side].ids[index] }, element("bdi", {}, "#" + page[side].ids[index]));

// It as an element, of which the end stays in sight, and after other words.
const fileTag = (side, index) => (fileOf(side, index) ? element("span", { class: "file", title: fileOf(side, index) }, element("bdi", {}, fileOf(side, index))) : null);
const fileTold = (side, index) => (fileOf(side, index) ? ", " + fileOf(side, index) : "");

// --- sprites ---

const sheetImages = new Map();

function sheetImage(number) {
  if (!sheetImages.has(number)) sheetImages.set(number, decodeSheet("sheet-" + number));
  return sheetImages.get(number);
}

// Sheets stand behind this script, so that the page is usable before they have all been read. What follows a sheet
// tells that it is whole.
async function decodeSheet(id) {
  while (!document.getElementById(id)?.nextElementSibling) await new Promise((resume) => setTimeout(resume, 15));
  const image = new Image();
  image.src = "data:" + page.sheets.mime + ";base64," + document.getElementById(id).textContent;
  await image.decode();
  return image;
}

const querySheets = page.sheets ? Math.ceil(queryCount / page.sheets.per) : 0;

async function drawPicture(canvas, side, index) {
  const { per, columns, width, height } = page.sheets;
  const image = await sheetImage((side === "train" ? querySheets : 0) + Math.floor(index / per));
  const x = (index % columns) * width, y = Math.floor((index % per) / columns) * height;
  canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
}
