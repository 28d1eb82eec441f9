/**
 * Brings the real programs that Toolsmith and its tests run: oras, a registry,
 * actionlint, QEMU, and what builds the test guest. Nothing of it needs root.
 * Safe to run twice, and at the same time. What cannot be brought is named in
 * one line, with the command that would bring it.
 *
 *     deno run -A scripts/setup.ts            # everything
 *     deno run -A scripts/setup.ts oras qemu  # some of it
 *
 * It runs before the project's imports can be resolved, so it imports none.
 *
 * @module
 */
import { toToolsmithError } from "../lib/errors.ts";
import { Progress } from "./progress.ts";
import { aptGet, canInstall, hasApt, missingPackages } from "./setup/apt.ts";
import { canBuild, goBuild } from "./setup/go.ts";
import { GO_DIR, unpackGo } from "./setup/go_toolchain.ts";
import {
  ALL,
  type Part,
  PARTS,
  remedyOf,
  type Source,
  type Tools,
} from "./setup/parts.ts";
import { unpackPackages } from "./setup/unpack.ts";

export type { Part, Tools };

const ROOT = Deno.realPathSync(`${import.meta.dirname}/..`);
const STORE = `${ROOT}/.cache/tools`;
const EXE = Deno.build.os === "windows" ? ".exe" : "";
const PATH_SEPARATOR = EXE ? ";" : ":";

const progress = new Progress({ prefix: "setup: " });

/**
 * Finds the parts, and brings those that are missing: by Go, from a release
 * whose SHA-256 is pinned, or from Debian's packages, into `.cache/tools/`. Root
 * installs such packages. Says on stderr what it does and what it cannot bring,
 * nothing else.
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
  if (!await lock.tryLock(true)) {
    using _ = progress.step("waiting for another set-up in this directory");
    await lock.lock(true);
  }
  // Another run may have brought them while this one waited.
  const missing = lacking(parts, await findTools(parts));
  await sweep();
  await Promise.all([
    ...missing.filter((part) => PARTS[part].go).map(make),
    bringPackages(missing.filter((part) => !PARTS[part].go)),
  ]);
  await bringPackages(missing.filter((part) => PARTS[part].go));
  const tools = await findTools(parts);
  for (const part of lacking(parts, tools)) {
    progress.line(`${part} is missing: ${remedyOf(part)}`);
  }
  return tools;
}

/**
 * Finds parts that are here already, and brings nothing. Programs in
 * `.cache/tools/` that came in packages are put on PATH, behind all others.
 *
 * Needs `--allow-read`, `--allow-env`, `--allow-run`.
 *
 * @param parts What to look for; all when left out.
 * @returns Where each part is.
 */
export async function findTools(parts: Part[] = ALL): Promise<Tools> {
  const paths = await Promise.all(parts.map(find));
  const unpacked = paths.filter((path) => path?.startsWith(STORE))
    .map((path) => path!.slice(0, path!.lastIndexOf("/")))
    .filter((dir) => dir.endsWith("/bin"));
  if (unpacked.length > 0) {
    const dirs = new Set([...searchPath(), ...unpacked]);
    Deno.env.set("PATH", [...dirs].join(PATH_SEPARATOR));
  }
  return Object.fromEntries(
    parts.map((part, index) => [part, paths[index]]).filter(([, path]) => path),
  );
}

async function find(part: Part): Promise<string | undefined> {
  const { variable, programs, suits, go, apt, unpackedFor, root } = PARTS[part];
  if (root && Deno.uid() !== 0) return undefined;
  const named = variable && Deno.env.get(variable);
  if (named && await isProgram(named, suits)) return Deno.realPathSync(named);
  const made = go && `${await goHome(part)}/${part}${EXE}`;
  if (part !== "oras" && made && await isProgram(made)) return made;
  for (const dir of unpackedFor === "all" ? [] : searchPath()) {
    for (const program of programs) {
      const path = `${dir}/${program}${EXE}`;
      if (dir && await isProgram(path, suits)) return path;
    }
  }
  if (made && await isProgram(made)) return made;
  if (!apt || !unpackedFor) return undefined;
  const starter = `${await packagesHome(part)}/bin/${programs[0]}`;
  return await isProgram(starter) ? starter : undefined;
}

function searchPath(): string[] {
  return (Deno.env.get("PATH") ?? "").split(PATH_SEPARATOR);
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
  const home = await goHome(part);
  const go = await findGo(module);
  if (go) {
    const built = await place(
      `building ${part} with Go`,
      home,
      (dir) =>
        goBuild({
          ...{ go, module, package: pkg! },
          output: `${dir}/${part}${EXE}`,
        }),
    );
    if (built) return;
  }
  if (otherwise) await place(`downloading ${part}`, home, otherwise);
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
  await bringPackages(["unzip"]);
  const placed = await place("downloading Go, of 70 MB", home, unpackGo);
  return placed ? program : undefined;
}

/** Puts a program in place whole, or not at all; what fails is said. */
async function place(
  step: string,
  target: string,
  fill: (dir: string) => Promise<void>,
): Promise<boolean> {
  using _ = progress.step(step);
  const staging = `${STORE}/.new-${crypto.randomUUID()}`;
  await Deno.mkdir(staging);
  try {
    await fill(staging);
    await Deno.rename(staging, target);
    return true;
  } catch (error) {
    progress.line(`${step}: ${toToolsmithError(error).message}`);
    await Deno.remove(staging, { recursive: true });
    return false;
  }
}

let packaging: Promise<void> = Promise.resolve();

/** Installs or unpacks what comes in packages, one call after the other. */
function bringPackages(parts: Part[]): Promise<void> {
  packaging = packaging.then(async () => {
    if (!hasApt()) return;
    const missing = lacking(parts, await findTools(parts))
      .filter((part) => PARTS[part].apt);
    const unpacked = missing.filter((part) => isUnpacked(PARTS[part]));
    if (canInstall()) {
      await install(missing.filter((part) => !unpacked.includes(part)));
    }
    for (const part of unpacked) {
      const packages = PARTS[part].apt!;
      const step = `downloading ${part} from Debian's packages`;
      const home = await packagesHome(part);
      await place(step, home, (dir) => unpackPackages(packages, dir));
    }
  });
  return packaging;
}

function isUnpacked({ unpackedFor }: Source): boolean {
  return unpackedFor === "all" ||
    (unpackedFor === "users" && Deno.uid() !== 0);
}

async function install(parts: Part[]): Promise<void> {
  if (parts.length === 0) return;
  const wanted = parts.flatMap((part) => PARTS[part].apt!);
  const packages = await missingPackages(wanted);
  using _ = progress.step(`installing ${packages.join(", ")} with apt`);
  try {
    await aptGet(["install", ...packages]);
  } catch (error) {
    progress.line(toToolsmithError(error).message);
  }
}

/** The directory of a program that was built: its name holds what it comes from. */
async function goHome(part: Part): Promise<string> {
  const module = `${ROOT}/tools/${part}`;
  const sources = Array.from(Deno.readDirSync(module), ({ name }) => name)
    .filter((name) => /\.(go|mod|sum)$/.test(name)).sort()
    .map((name) => Deno.readTextFile(`${module}/${name}`));
  const texts = await Promise.all(sources);
  return await homeOf(part, texts.join("") + Deno.build.target);
}

/** The directory that a part's packages are unpacked in. */
async function packagesHome(part: Part): Promise<string> {
  return await homeOf(`${part}-packages`, PARTS[part].apt!.join(" "));
}

async function homeOf(name: string, pins: string): Promise<string> {
  const bytes = new TextEncoder().encode(pins);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `${STORE}/${name}-${digest.toHex().slice(0, 12)}`;
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

if (import.meta.main) {
  const unknown = Deno.args.find((name) => !(name in PARTS));
  if (unknown !== undefined) {
    progress.line(`no part "${unknown}": it is one of ${ALL.join(", ")}`);
    Deno.exitCode = 2;
  } else {
    const parts = (Deno.args.length ? Deno.args : ALL) as Part[];
    const tools = await setup(parts);
    if (lacking(parts, tools).length > 0) Deno.exitCode = 1;
  }
}
