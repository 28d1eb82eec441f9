/**
 * A recording of a real terminal: an image is published, hydrated, run, and run
 * again. tmux is the terminal; the screen is read many times a second, and the
 * picture keeps the time that each line was seen.
 *
 * @module
 */
import { join } from "@std/path";
import { run } from "../../lib/system/process.ts";
import { sleep } from "../../lib/system/time.ts";
import { guest } from "../../tests/support/guest.ts";
import { temporaryDir } from "../../tests/support/directory.ts";
import { parts } from "../../tests/support/parts.ts";
import { startRegistry } from "../../tests/support/registry.ts";
import { openTerminal, type TestTerminal } from "../../tests/support/tmux.ts";
import { BUNDLE, bundle } from "../bundle.ts";
import { animate, type Sample } from "./animation.ts";

const SIZE = { columns: 94, rows: 27 };
const SAMPLE_MS = 60;
const KEY_MS = 35;
const PAUSE_MS = 900;
const PROMPT = "$ ";

/** Records it, and draws the recording. */
export async function recording(): Promise<string> {
  if (!await bundle()) throw new Error("there is no bundle");
  await using dir = await temporaryDir();
  await using registry = await startRegistry();
  const host = registry.host.replace("127.0.0.1", "localhost");
  await Deno.mkdir(join(dir.path, "bin"));
  await Deno.mkdir(join(dir.path, "dist"));
  await Deno.copyFile(await guest(), join(dir.path, "dist", "image.qcow2"));
  await Deno.writeTextFile(
    join(dir.path, "bin", "toolsmith"),
    `#!/bin/sh\nexec "${Deno.execPath()}" run --quiet -A "${BUNDLE}" "$@"\n`,
    { mode: 0o755 },
  );
  const terminal = await openTerminal({
    cwd: dir.path,
    env: {
      PATH: `${dir.path}/bin:${Deno.env.get("PATH")}`,
      TOOLSMITH_ORAS: parts.oras!,
      TOOLSMITH_QEMU: parts.qemu!,
      LC_ALL: "C.UTF-8",
    },
  });
  await using _closed = terminal;
  await terminal.resize(SIZE.columns, SIZE.rows);
  await terminal.type(`PS1='${PROMPT}'; clear`);
  await sleep(500);
  const samples = await record(terminal, [
    `toolsmith publish dist/image.qcow2 ${host}/me/image:1.0 \\\n  --write-manifest .toolsmith/tools.json >/dev/null`,
    "toolsmith hydrate",
    "toolsmith run uname -sr",
    "toolsmith run uname -sr",
  ]);
  return animate(samples, { ...SIZE, caption: await caption(samples) });
}

/** Types the commands, each when the one before has ended. */
async function record(
  terminal: TestTerminal,
  commands: string[],
): Promise<Sample[]> {
  const samples: Sample[] = [];
  const begun = performance.now();
  let over = false;
  const watching = (async () => {
    while (!over) {
      const at = performance.now() - begun;
      samples.push({ at, screen: await terminal.screen() });
      await sleep(SAMPLE_MS);
    }
  })();
  for (const command of commands) {
    for (const line of command.split("\n")) {
      for (const key of line) {
        await terminal.write(key);
        await sleep(KEY_MS);
      }
      await terminal.press("Enter");
    }
    // The next prompt stands alone in the last line.
    while (lastLine(await terminal.screen()) !== PROMPT.trimEnd()) {
      await sleep(SAMPLE_MS);
    }
    await sleep(PAUSE_MS);
  }
  over = true;
  await watching;
  return samples;
}

function lastLine(screen: string): string {
  return screen.trimEnd().split("\n").at(-1)!.trimEnd();
}

/** Which machine, which versions. */
async function caption(samples: Sample[]): Promise<string> {
  const version = async (program: string, args: string[]) =>
    /\d+\.\d+\.\d+/.exec((await run(program, { args })).stdout)?.[0];
  const [, accelerator] = samples
    .map(({ screen }) => /booting with QEMU \S+ (\w+)/.exec(screen))
    .find((found) => found !== null)!;
  return [
    new Date().toISOString().slice(0, 10),
    `${navigator.hardwareConcurrency} processors, load ${
      Deno.loadavg()[0].toFixed(0)
    }, ${accelerator}`,
    `Linux ${/^\d+\.\d+/.exec(Deno.osRelease())?.[0]}`,
    `QEMU ${await version(parts.qemu!, ["--version"])}`,
    `oras ${await version(parts.oras!, ["version"])}`,
    `Deno ${Deno.version.deno}`,
  ].join(" · ");
}
