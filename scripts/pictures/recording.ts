/**
 * Records a real terminal (tmux) while a manifest is written and its image hydrated,
 * run, and run again from the snapshot. It samples the screen many times a second.
 * Keys appear at one speed and slow commands are sped up, so that a busy host does
 * not lengthen the recording; the durations that Toolsmith prints are unchanged.
 */
import { join } from "@std/path";
import { runProcess } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { buildTestGuest } from "../../tests/support/guest.ts";
import { temporaryDir } from "../../tests/support/directory.ts";
import { foundTools } from "../../tests/support/parts.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import { openTerminal, type TestTerminal } from "../../tests/support/tmux.ts";
import { priorityNotes } from "../bench/report.ts";
import { BUNDLE_PATH, writeBundle } from "../bundle.ts";
import { animatedSvg, type ScreenSample } from "./animation.ts";

const TERMINAL_SIZE = { columns: 86, rows: 18 };
const SAMPLE_MS = 60;
const KEY_MS = 30;
const PAUSE_MS = 700;
/** What a command takes at most, as it is shown. */
const WAIT_MS = 1800;
const PROMPT = "$ ";

/** Records the terminal and draws the SVG. */
export async function recordTerminalSvg(): Promise<string> {
  if (!await writeBundle()) {
    throw new Error("dist/toolsmith.js cannot be written");
  }
  await using dir = await temporaryDir();
  await using registry = await startRegistry();
  const host = registry.host.replace("127.0.0.1", "localhost");
  await Deno.mkdir(join(dir.path, "bin"));
  await Deno.writeTextFile(
    join(dir.path, "bin", "toolsmith"),
    `#!/bin/sh\nexec "${Deno.execPath()}" run --quiet -A "${BUNDLE_PATH}" "$@"\n`,
    { mode: 0o755 },
  );
  const terminal = await openTerminal({
    cwd: dir.path,
    env: {
      PATH: `${dir.path}/bin:${Deno.env.get("PATH")}`,
      TOOLSMITH_ORAS: foundTools.oras!,
      TOOLSMITH_QEMU: foundTools.qemu!,
      LC_ALL: "C.UTF-8",
    },
  });
  await using _closed = terminal;
  const image = join(dir.path, "vm.qcow2");
  await Deno.copyFile(await buildTestGuest(), image);
  await runProcess(join(dir.path, "bin", "toolsmith"), {
    args: ["publish", image, `${host}/vm:1`],
    env: { PATH: Deno.env.get("PATH")!, TOOLSMITH_ORAS: foundTools.oras! },
  });
  await terminal.resize(TERMINAL_SIZE.columns, TERMINAL_SIZE.rows);
  await terminal.type(`PS1='${PROMPT}'; clear`);
  await sleep(500);
  const samples = await typeAndSample(terminal, [
    `toolsmith init --ref ${host}/vm:1 >/dev/null`,
    "IMG=$(toolsmith hydrate)",
    "toolsmith run uname -sr",
    "toolsmith run uname -sr",
  ]);
  const wrapped = samples.flatMap(({ screen }) => screen.split("\n"))
    .find((line) => withoutColours(line).length >= TERMINAL_SIZE.columns);
  if (wrapped) throw new Error(`too long for the recording: ${wrapped}`);
  const last = withoutColours(samples.at(-1)!.screen);
  const [, booted] = /booted in ([^,]+),/.exec(last) ?? [];
  const [, restored] = /restored in (.+)/.exec(last) ?? [];
  if (!booted || !restored) throw new Error(`no second start:\n${last}`);
  return animatedSvg(samples, {
    ...TERMINAL_SIZE,
    caption: await recordingCaption(samples),
    climax: {
      line: /restored in/,
      note: `second start: ${restored} instead of ${booted}`,
    },
  });
}

/** Types each command when the previous one has ended. */
async function typeAndSample(
  terminal: TestTerminal,
  commands: string[],
): Promise<ScreenSample[]> {
  const samples: ScreenSample[] = [{ at: 0, screen: await terminal.screen() }];
  const sample = async (at: number) => {
    const screen = await terminal.screen();
    if (screen !== samples.at(-1)!.screen) samples.push({ at, screen });
  };
  let now = 500;
  for (const command of commands) {
    for (const key of command) {
      await terminal.write(key);
      now += KEY_MS;
      await sample(now);
    }
    await terminal.press("Enter");
    const [begun, first] = [performance.now(), samples.length];
    do {
      await sleep(SAMPLE_MS);
      await sample(performance.now() - begun);
      // The next prompt stands alone in the last line.
    } while (lastLine(samples.at(-1)!.screen) !== PROMPT.trimEnd());
    const speed = Math.max(1, samples.at(-1)!.at / WAIT_MS);
    for (const seen of samples.slice(first)) seen.at = now + seen.at / speed;
    now = samples.at(-1)!.at + PAUSE_MS;
  }
  return samples;
}

function withoutColours(text: string): string {
  // deno-lint-ignore no-control-regex
  return text.replaceAll(/\x1b\[[\d;]*m/g, "");
}

function lastLine(screen: string): string {
  return screen.trimEnd().split("\n").at(-1)!.trimEnd();
}

/** Which machine, which versions. */
async function recordingCaption(samples: ScreenSample[]): Promise<string> {
  const version = async (program: string, args: string[]) =>
    /\d+\.\d+\.\d+/.exec((await runProcess(program, { args })).stdout)?.[0];
  const [, accelerator] = samples
    .map(({ screen }) => /booting with QEMU \S+ (\w+)/.exec(screen))
    .find((found) => found !== null)!;
  return [
    new Date().toISOString().slice(0, 10),
    [
      `${navigator.hardwareConcurrency} processors`,
      `load ${Deno.loadavg()[0].toFixed(0)}`,
      ...await priorityNotes(),
      accelerator,
    ].join(", "),
    `Linux ${/^\d+\.\d+/.exec(Deno.osRelease())?.[0]}`,
    `QEMU ${await version(foundTools.qemu!, ["--version"])}`,
    `oras ${await version(foundTools.oras!, ["version"])}`,
    "slow commands sped up",
  ].join(" · ");
}
