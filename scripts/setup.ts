/**
 * Brings the real programs that Toolsmith and its tests run: oras, a registry,
 * actionlint, QEMU, and what builds the test guest. Safe to run twice, and at
 * the same time. What cannot be brought is named in one line, with the remedy.
 *
 *     deno run -A scripts/setup.ts            # everything
 *     deno run -A scripts/setup.ts oras qemu  # some of it
 *
 * It runs before the project's imports can be resolved, so it imports none.
 *
 * @module
 */
import { toToolsmithError } from "../lib/errors.ts";
import { aptGet, canInstall, missingPackages } from "./setup/apt.ts";
import { canBuild, goBuild } from "./setup/go.ts";
import { GO_DIR, unpackGo } from "./setup/go_toolchain.ts";
import {
  ALL,
  type Part,
  PARTS,
  type Source,
  type Tools,
} from "./setup/parts.ts";

export type { Part, Tools };

const ROOT = Deno.realPathSync(`${import.meta.dirname}/..`);
const STORE = `${ROOT}/.cache/tools`;
const EXE = Deno.build.os === "windows" ? ".exe" : "";

/**
 * Finds the parts, and brings those that are missing: from `.cache/tools/`, by
 * Go, from a release whose SHA-256 is pinned, or by apt. Says one line on
 * stderr for each thing that it brings or cannot bring, nothing else.
 *
 * Needs `--allow-all`, as it runs compilers and package managers.
 *
 * @param parts What to bring; all when left out.
 * @returns Where each part is.
 */
export async function setup(
  parts: Part[] = ALL,
): Promise<Tools> {
  const found = await findTools(parts);
  if (lacking(parts, found).length === 0) return found;
  await Deno.mkdir(STORE, { recursive: true });
  using lock = await Deno.open(`${STORE}/.lock`, { create: true, write: true });
  const waiting = setTimeout(() => {
    say("waiting for another set-up in this directory");
  }, 1000);
  await lock.lock(true);
  clearTimeout(waiting);
  // Another run may have brought them while this one waited.
  const tools = await findTools(parts);
  await sweep();
  const missing = lacking(parts, tools);
  await Promise.all([
    ...missing.filter((part) => PARTS[part].go).map(make),
    install(missing.filter((part) => !PARTS[part].go)),
  ]);
  Object.assign(tools, await findTools(missing));
  const last = lacking(missing, tools).filter((part) => PARTS[part].go);
  await install(last);
  Object.assign(tools, await findTools(last));
  for (const part of lacking(parts, tools)) {
    say(`${part} is missing: install ${PARTS[part].remedy}`);
  }
  return tools;
}

/**
 * Finds parts that are here already, and brings nothing.
 *
 * Needs `--allow-read`, `--allow-env`, `--allow-run`.
 *
 * @param parts What to look for; all when left out.
 * @returns Where each part is.
 */
export async function findTools(parts: Part[] = ALL): Promise<Tools> {
  const paths = await Promise.all(parts.map(find));
  return Object.fromEntries(
    parts.map((part, index) => [part, paths[index]]).filter(([, path]) => path),
  );
}

async function find(part: Part): Promise<string | undefined> {
  const { variable, programs, suits, go } = PARTS[part];
  const named = variable && Deno.env.get(variable);
  if (named && await isProgram(named, suits)) return Deno.realPathSync(named);
  const made = go && `${await home(part)}/${part}${EXE}`;
  if (part !== "oras" && made && await isProgram(made)) return made;
  const dirs = (Deno.env.get("PATH") ?? "").split(EXE ? ";" : ":");
  for (const dir of dirs) {
    for (const program of programs) {
      const path = `${dir}/${program}${EXE}`;
      if (dir && await isProgram(path, suits)) return path;
    }
  }
  return made && await isProgram(made) ? made : undefined;
}

async function isProgram(path: string, suits?: Source["suits"]) {
  try {
    const { isFile, mode } = await Deno.stat(path);
    if (!isFile || (mode !== null && (mode & 0o111) === 0)) return false;
    return suits ? await suits(path) : true;
  } catch {
    return false;
  }
}

/** Tries each way to make a program; what fails is said, and the next tried. */
async function make(part: Part): Promise<void> {
  const { go: pkg, otherwise } = PARTS[part];
  const module = `${ROOT}/tools/${part}`;
  const go = await findGo(module);
  if (go) {
    say(`building ${part} with Go, which takes a minute at first`);
    const built = await place(
      part,
      (dir) =>
        goBuild({
          ...{ go, module, package: pkg! },
          output: `${dir}/${part}${EXE}`,
        }),
      await home(part),
    );
    if (built) return;
  }
  if (!otherwise) return;
  say(`downloading ${part}`);
  await place(part, otherwise, await home(part));
}

/** A Go that can build a module; brought where there is none. */
async function findGo(module: string): Promise<string | undefined> {
  if (await canBuild("go", module)) return "go";
  // Parts are made at the same time: Go is brought for all of them once.
  bringing ??= bringGo(module);
  return await bringing;
}

let bringing: Promise<string | undefined> | undefined;

async function bringGo(module: string): Promise<string | undefined> {
  const home = `${STORE}/${GO_DIR}`;
  const program = `${home}/bin/go`;
  if (await canBuild(program, module)) return program;
  say("downloading Go, of 70 MB");
  return await place("go", unpackGo, home) ? program : undefined;
}

/** Puts a program in place whole, or not at all. */
async function place(
  name: string,
  fill: (dir: string) => Promise<void>,
  target: string,
) {
  const staging = `${STORE}/.new-${crypto.randomUUID()}`;
  await Deno.mkdir(staging);
  try {
    await fill(staging);
    await Deno.rename(staging, target);
    return true;
  } catch (error) {
    say(`${name}: ${toToolsmithError(error).message}`);
    await Deno.remove(staging, { recursive: true });
    return false;
  }
}

async function install(parts: Part[]): Promise<void> {
  const wanted = parts.flatMap((part) => PARTS[part].apt ?? []);
  if (wanted.length === 0 || !canInstall()) return;
  try {
    const packages = await missingPackages(wanted);
    say(`installing ${packages.join(", ")} with apt`);
    await aptGet(["install", ...packages]);
  } catch (error) {
    say(toToolsmithError(error).message);
  }
}

/** The directory of a program that was made: its name holds what it comes from. */
async function home(part: Part): Promise<string> {
  const module = `${ROOT}/tools/${part}`;
  const pins = await Deno.readTextFile(`${module}/go.mod`) +
    await Deno.readTextFile(`${module}/go.sum`) + Deno.build.target;
  const bytes = new TextEncoder().encode(pins);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `${STORE}/${part}-${digest.toHex().slice(0, 12)}`;
}

/** Removes what a killed run left. The lock says that none is at work. */
async function sweep(): Promise<void> {
  for await (const { name } of Deno.readDir(STORE)) {
    if (!name.startsWith(".new-")) continue;
    await Deno.remove(`${STORE}/${name}`, { recursive: true });
  }
}

function lacking(parts: Part[], tools: Tools): Part[] {
  return parts.filter((part) => !tools[part]);
}

function say(line: string): void {
  console.error(`setup: ${line}`);
}

if (import.meta.main) {
  const unknown = Deno.args.find((name) => !(name in PARTS));
  if (unknown !== undefined) {
    say(`no part "${unknown}": it is one of ${ALL.join(", ")}`);
    Deno.exitCode = 2;
  } else {
    const parts = (Deno.args.length ? Deno.args : ALL) as Part[];
    const tools = await setup(parts);
    if (lacking(parts, tools).length > 0) Deno.exitCode = 1;
  }
}
