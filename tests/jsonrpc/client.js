// SPDX-License-Identifier: Apache-2.0
// Starts `atoll serve --stdio` and speaks to it through vscode-jsonrpc, as an editor does; says on standard output, as
// JSON, what came of it. Arguments: the command, as JSON.
"use strict";

const { spawn } = require("child_process");
const rpc = require("vscode-jsonrpc/node");

const command = JSON.parse(process.argv[2]);
const child = spawn(command[0], command.slice(1), { stdio: ["pipe", "pipe", "inherit"] });
const ended = new Promise((resolve) => child.on("exit", (code) => resolve(code)));
const connection = rpc.createMessageConnection(
  new rpc.StreamMessageReader(child.stdout),
  new rpc.StreamMessageWriter(child.stdin),
);
const found = { errors: [], progress: [], items: [] };
connection.onError(([error]) => found.errors.push(String(error)));

function told(error) {
  return { code: error.code, message: error.message, type: error.data && error.data.type };
}

async function main() {
  connection.listen();
  found.byPosition = await connection.sendRequest("add", 1, 2);
  found.byName = await connection.sendRequest("add", { a: "ü", b: "€" });
  found.nothing = await connection.sendRequest("nothing");
  found.raised = await connection.sendRequest("fail", "value").catch(told);
  found.unknown = await connection.sendRequest("subtract", 1).catch(told);
  found.wrong = await connection.sendRequest("add", { c: 1 }).catch(told);
  await connection.sendNotification("add", 1);

  const kind = new rpc.ProgressType();
  connection.onProgress(kind, "work", (value) => found.progress.push(value));
  found.steps = await connection.sendRequest("steps", { n: 2, workDoneToken: "work" });
  connection.onProgress(kind, 7, (value) => found.items.push(...value));
  found.stream = await connection.sendRequest("count", { n: 5, partialResultToken: 7 });

  const source = new rpc.CancellationTokenSource();
  const hanging = connection.sendRequest("hang", source.token).catch(told);
  source.cancel();
  found.cancelled = await hanging;

  const many = await Promise.all(Array.from({ length: 200 }, (_, n) => connection.sendRequest("same", { value: n })));
  found.many = many.every((value, n) => value === n);
  found.large = (await connection.sendRequest("same", { value: "x".repeat(3000000) })).length;
  found.after = await connection.sendRequest("add", 1);
  connection.end();
  child.stdin.end();
  found.status = await ended;
  console.log(JSON.stringify(found));
}

main().catch((error) => {
  console.error(error);
  child.kill();
  process.exit(1);
});
