/**
 * The guest's end of a shell that waits in a fake machine for its first command.
 *
 * @module
 */
import type { ENDS } from "../../lib/qemu/devices.ts";
import { readLine, say } from "./fake_machine.ts";

/** What the shell was told, and where it answers. */
export interface WaitingCommand {
  /** The lines of the words, the first of which says whether there is input. */
  words: string[];
  marker: string;
  out: Deno.Conn;
  err: Deno.Conn;
  in: Deno.Conn;
}

/** What the shell does; each is left out where it ends well. */
export interface WaitingGuestOptions {
  /** Answers to the words of the set-up. */
  setUp?: (marker: string, words: string[]) => string;
  /** Says that it has been told. */
  start?: (command: WaitingCommand) => Promise<void>;
  /** Runs the command. @default it prints its words, and ends with 3 */
  command?: (command: WaitingCommand) => Promise<void>;
}

/**
 * Waits as the shell does.
 *
 * @param machine The machine; it has ports from its start.
 * @param options What becomes of it.
 * @returns Settles when the command has ended.
 */
export async function waitInGuest(
  machine: { first(end: typeof ENDS[number]): Promise<Deno.Conn> },
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
  const marker = await readLine(err);
  let { kind, words } = await readList(err);
  while (kind === "setup") {
    await say(err, setUp(marker, words));
    ({ kind, words } = await readList(err));
  }
  const told = { words, marker, out, err, in: input };
  await start(told);
  await command(told);
}

async function readList(port: Deno.Conn) {
  const words: string[] = [];
  const [kind, count] = (await readLine(port)).split(" ");
  while (words.length < Number(count)) words.push(await readLine(port));
  return { kind, words };
}

async function printWords({ words, marker, out, err }: WaitingCommand) {
  await say(out, `${words.join(" ")}${marker}3\n`);
  await say(err, `${marker}\n`);
}
