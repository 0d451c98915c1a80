#!/usr/bin/env node
// Lets forge use the solc of package-lock.json: it only asks for the version and for standard JSON.
const solc = require("solc");
const { readFileSync } = require("node:fs");
if (process.argv.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version().replace("Emscripten.clang", "Linux.g++")}`);
} else {
  process.stdout.write(solc.compile(readFileSync(0, "utf8")));
}
