/** `toolsmith mcp`: serves the VM to an AI agent. */
import { loadManifest } from "../../manifest/manifest.ts";
import { serveMcp } from "../../mcp/server.ts";
import { terminalSafeJson } from "../../system/sanitize_text.ts";
import { eventLine } from "../event_lines.ts";
import { defineFlags } from "../flag.ts";
import { createQueuedOutput } from "../queued_output.ts";
import * as shared from "../shared_flags.ts";
import { defineSubcommand } from "../subcommand.ts";

export const mcpCommand = defineSubcommand({
  name: "mcp",
  usage: "[flags]",
  summary: "serve the image's tools to an AI agent (Model Context Protocol)",
  details:
    "The agent's client starts it and speaks with it on standard input and output.\nThe agent may do what these flags grant, in one VM that lasts until the client ends.",
  example: "mcp --manifest ~/project/.toolsmith/tools.json --export out",
  flags: {
    ...defineFlags("Command", {
      freshEach: "--fresh-each  run each call in a VM of its own",
      log: "--log FILE  append events to FILE, as JSON Lines",
    }),
    ...shared.COMMAND,
    ...shared.VM,
    ...shared.PROGRESS,
  },
  async run({ freshEach = false, log, ...given }, io) {
    const manifest = await loadManifest(given.manifest, io);
    const toAppend = { append: true, create: true };
    using file = log ? await Deno.open(log, toAppend) : undefined;
    const output = file && createQueuedOutput(file, `--log ${log}`);
    const onEvent = output
      ? (event: object) => void output.write(`${terminalSafeJson(event)}\n`)
      : io.onEvent;
    const { stdin: readable, stdout: write } = io.guestCommandStreams();
    const streams = { readable, writable: new WritableStream({ write }) };
    await serveMcp(manifest, streams, {
      ...shared.runInVmOptions(given, { ...io, onEvent }),
      freshEach,
      progressText: eventLine,
    });
    await output?.flush();
  },
});
