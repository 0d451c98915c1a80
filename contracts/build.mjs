// Builds the contracts into artifacts/ with the solc of package-lock.json.
//
//   node build.mjs            write artifacts/
//   node build.mjs --check    compare with artifacts/ and exit 1 on any difference
//   node build.mjs --out DIR  write elsewhere
//
// Everything that decides the bytes is in `settings`; the compiler input itself is committed as artifacts/input.json.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import solc from "solc";

const here = dirname(fileURLToPath(import.meta.url));
const contracts = [
  "Registry", "Consent", "KeyBindings", "PiecesCalldata", "PiecesLog", "PiecesCode", "PiecesStorage", "Anchors", "Validators",
];
const interfaces = [
  ["ISources", "ISources", "ISources"],
  ["IStudies", "IStudies", "IStudies"],
  ["IPieces", "IPieces", "IPiecesReadable"],
];
const settings = {
  evmVersion: "london",
  optimizer: { enabled: true, runs: 200 },
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"] } },
};

function read(path) {
  const file = path.startsWith("solidity/") ? join(here, path) : join(here, "node_modules", path);
  return readFileSync(file, "utf8");
}

/** Collects the sources reachable from `path`, named as the compiler names them. */
function collect(path, sources) {
  if (path in sources) return sources;
  const content = read(path);
  sources[path] = { content };
  for (const [, target] of content.matchAll(/^import\s[^"]*"([^"]+)";/gm)) {
    collect(target.startsWith(".") ? posix.normalize(posix.join(posix.dirname(path), target)) : target, sources);
  }
  return sources;
}

function build() {
  const found = {};
  for (const name of contracts) collect(`solidity/${name}.sol`, found);
  const sources = Object.fromEntries(Object.entries(found).sort(([a], [b]) => (a < b ? -1 : 1)));
  const input = { language: "Solidity", sources, settings };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const errors = (output.errors ?? []).filter((e) => e.severity === "error" || e.sourceLocation?.file.startsWith("solidity/"));
  if (errors.length > 0) {
    process.stderr.write(errors.map((e) => e.formattedMessage).join("\n"));
    process.exit(1);
  }
  const files = { "input.json": JSON.stringify(input, null, 1) + "\n" };
  for (const name of contracts) {
    const { abi, evm } = output.contracts[`solidity/${name}.sol`][name];
    if (Object.keys(evm.deployedBytecode.immutableReferences ?? {}).length > 0) {
      throw new Error(`${name} has immutables: its runtime code would differ at every deployment`);
    }
    const deployed = "0x" + evm.deployedBytecode.object;
    const artifact = { contractName: name, compiler: solc.version(), abi, bytecode: "0x" + evm.bytecode.object, deployedBytecode: deployed };
    files[`${name}.json`] = JSON.stringify(artifact, null, 1) + "\n";
  }
  const sha256 = (text) => createHash("sha256").update(text).digest("hex");
  // Interfaces alone: for bindings that do not care about the pieces' mode, nor that two interfaces live at one address.
  for (const [name, file, type] of interfaces) {
    const { abi } = output.contracts[`solidity/interfaces/${file}.sol`][type];
    files[`${name}.json`] = JSON.stringify({ contractName: name, abi }, null, 1) + "\n";
  }
  files["SHA256SUMS"] = Object.keys(files).sort().map((f) => `${sha256(files[f])}  ${f}\n`).join("");
  return files;
}

const args = process.argv.slice(2);
const out = args.includes("--out") ? args[args.indexOf("--out") + 1] : join(here, "artifacts");
const files = build();
if (args.includes("--check")) {
  const stale = Object.keys(files).filter((f) => !existsSync(join(out, f)) || readFileSync(join(out, f), "utf8") !== files[f]);
  const extra = readdirSync(out).filter((f) => !(f in files));
  if (stale.length + extra.length > 0) {
    process.stderr.write(`artifacts differ: ${[...stale, ...extra].join(", ")}\n`);
    process.exit(1);
  }
} else {
  mkdirSync(out, { recursive: true });
  for (const [f, text] of Object.entries(files)) writeFileSync(join(out, f), text);
}
