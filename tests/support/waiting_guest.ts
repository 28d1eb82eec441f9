/** The guest's side of the warm shell in a fake VM. */
import type { STDIO_PORTS } from "../../lib/qemu/device_ids.ts";
import { readLine, say } from "./fake_machine.ts";

/** The command that the warm shell received, and its connections. */
export interface WaitingCommand {
  /** The received lines; the first says whether there is input. */
  words: string[];
  marker: string;
  out: Deno.Conn;
  err: Deno.Conn;
  in: Deno.Conn;
}

/** Replaces steps of the shell; each succeeds by default. */
export interface WaitingGuestOptions {
  /** Answers the setup message. */
  setUp?: (marker: string, words: string[]) => string;
  /** Confirms the command. */
  start?: (command: WaitingCommand) => Promise<void>;
  /** Runs the command. @default prints its words and exits with 3 */
  command?: (command: WaitingCommand) => Promise<void>;
}

/**
 * Plays the warm shell.
 *
 * @param machine A fake VM with ports at boot.
 * @param options Replaced steps.
 * @returns Settles when the command has ended.
 */
export async function runWarmShellGuest(
  machine: { first(end: typeof STDIO_PORTS[number]): Promise<Deno.Conn> },
  options: WaitingGuestOptions = {},
): Promise<void> {
  const {
    setUp = (marker: string) => `${marker}0 7\n`,
    start = ({ err }) => say(err, "ready\n"),
    command = printWords,
  } = options;
  const [out, err, input] = await Promise.all([
    machine.first("out"),
    machine.first("err"),
    machine.first("in"),
  ]);
  let { kind, marker, words } = await readList(err);
  while (kind === "setup") {
    await say(err, setUp(marker, words));
    ({ kind, marker, words } = await readList(err));
  }
  const told = { words, marker, out, err, in: input };
  await start(told);
  await command(told);
}

async function readList(port: Deno.Conn) {
  const words: string[] = [];
  const [kind, count, marker] = (await readLine(port)).split(" ");
  while (words.length < Number(count)) words.push(await readLine(port));
  return { kind, marker, words };
}

async function printWords({ words, marker, out, err }: WaitingCommand) {
  await say(out, `${words.join(" ")}${marker}3\n`);
  await say(err, `${marker}\n`);
}
