/**
 * Installs the programs that Toolsmith and its tests run: oras, a registry,
 * actionlint, QEMU, and what builds the test guest. No root needed; idempotent and
 * safe to run in parallel. Each part that it cannot install is printed with a command
 * that can.
 *
 *     deno run -A scripts/setup.ts            # everything
 *     deno run -A scripts/setup.ts oras qemu  # some of it
 *
 * It runs before the project's imports can be resolved, so it imports none.
 */
import { toToolsmithError } from "../lib/errors.ts";
import { Progress } from "./progress.ts";
import {
  canInstallWithApt,
  hasApt,
  missingPackages,
  runAptGet,
} from "./setup/apt.ts";
import { buildGoProgram, canGoBuild } from "./setup/go.ts";
import { downloadGoToolchain, GO_DIR } from "./setup/go_toolchain.ts";
import {
  ALL_PARTS,
  installHint,
  type Part,
  PARTS,
  type PartSource,
  type Tools,
} from "./setup/parts.ts";
import { downloadAndUnpackPackages } from "./setup/unpack.ts";

export type { Part, Tools };

const PROJECT_ROOT = Deno.realPathSync(`${import.meta.dirname}/..`);
const TOOLS_DIR = `${PROJECT_ROOT}/.cache/tools`;
const EXE_SUFFIX = Deno.build.os === "windows" ? ".exe" : "";
const PATH_SEPARATOR = EXE_SUFFIX ? ";" : ":";

const progress = new Progress({ prefix: "setup: " });

/**
 * Finds the parts and adds missing ones to `.cache/tools/`: built with Go, or from a
 * release with a pinned SHA-256, or from Debian packages, which root installs. Prints
 * progress and missing parts to stderr.
 *
 * Needs `--allow-all`, as it runs compilers and package managers.
 *
 * @param parts The parts; all by default.
 * @returns The path of each part's program.
 */
export async function setUpTools(
  parts: Part[] = ALL_PARTS,
): Promise<Tools> {
  const found = await findTools(parts);
  if (missingParts(parts, found).length === 0) return found;
  await Deno.mkdir(TOOLS_DIR, { recursive: true });
  using lock = await Deno.open(`${TOOLS_DIR}/.lock`, {
    create: true,
    write: true,
  });
  if (!await lock.tryLock(true)) {
    using _ = progress.beginLoggedStep(
      "waiting for another setup in this directory",
    );
    await lock.lock(true);
  }
  // Another run may have added them while this one waited.
  const missing = missingParts(parts, await findTools(parts));
  await removeStaleStaging();
  await Promise.all([
    ...missing.filter((part) => PARTS[part].go).map(buildOrDownload),
    installOrUnpackPackages(missing.filter((part) => !PARTS[part].go)),
  ]);
  await installOrUnpackPackages(missing.filter((part) => PARTS[part].go));
  const tools = await findTools(parts);
  for (const part of missingParts(parts, tools)) {
    progress.printLine(`${part} is missing: ${installHint(part)}`);
  }
  return tools;
}

/**
 * Finds parts without installing anything. Programs unpacked from packages in
 * `.cache/tools/` are appended to PATH.
 *
 * Needs `--allow-read`, `--allow-env`, `--allow-run`.
 *
 * @param parts The parts; all by default.
 * @returns The path of each part's program.
 */
export async function findTools(parts: Part[] = ALL_PARTS): Promise<Tools> {
  const paths = await Promise.all(parts.map(findTool));
  const unpacked = paths.filter((path) => path?.startsWith(TOOLS_DIR))
    .map((path) => path!.slice(0, path!.lastIndexOf("/")))
    .filter((dir) => dir.endsWith("/bin"));
  if (unpacked.length > 0) {
    const dirs = new Set([...pathDirs(), ...unpacked]);
    Deno.env.set("PATH", [...dirs].join(PATH_SEPARATOR));
  }
  return Object.fromEntries(
    parts.map((part, index) => [part, paths[index]]).filter(([, path]) => path),
  );
}

async function findTool(part: Part): Promise<string | undefined> {
  const { variable, programs, isUsable, go, apt, unpackedFor, root } =
    PARTS[part];
  if (root && Deno.uid() !== 0) return undefined;
  const fromVariable = variable && Deno.env.get(variable);
  if (fromVariable && await isUsableProgram(fromVariable, isUsable)) {
    return Deno.realPathSync(fromVariable);
  }
  const built = go && `${await goBuildDir(part)}/${part}${EXE_SUFFIX}`;
  if (part !== "oras" && built && await isUsableProgram(built)) return built;
  for (const dir of unpackedFor === "all" ? [] : pathDirs()) {
    for (const program of programs) {
      const path = `${dir}/${program}${EXE_SUFFIX}`;
      if (dir && await isUsableProgram(path, isUsable)) return path;
    }
  }
  if (built && await isUsableProgram(built)) return built;
  if (!apt || !unpackedFor) return undefined;
  const wrapper = `${await unpackedDir(part)}/bin/${programs[0]}`;
  return await isUsableProgram(wrapper) ? wrapper : undefined;
}

function pathDirs(): string[] {
  return (Deno.env.get("PATH") ?? "").split(PATH_SEPARATOR);
}

async function isUsableProgram(
  path: string,
  isUsable?: PartSource["isUsable"],
) {
  try {
    const { isFile, mode } = await Deno.stat(path);
    if (!isFile || (mode !== null && (mode & 0o111) === 0)) return false;
    return isUsable ? await isUsable(path) : true;
  } catch {
    return false;
  }
}

/** Builds a program with Go, else downloads it; prints what fails. */
async function buildOrDownload(part: Part): Promise<void> {
  const { go: pkg, fallback } = PARTS[part];
  const module = `${PROJECT_ROOT}/tools/${part}`;
  const home = await goBuildDir(part);
  const go = await findOrDownloadGo(module);
  if (go) {
    const built = await installAtomically(
      `building ${part} with Go`,
      home,
      (dir) =>
        buildGoProgram({
          ...{ go, module, package: pkg! },
          output: `${dir}/${part}${EXE_SUFFIX}`,
        }),
    );
    if (built) return;
  }
  if (fallback) {
    await installAtomically(`downloading ${part}`, home, fallback);
  }
}

/** Returns a Go that can build the module; downloads one if necessary. */
async function findOrDownloadGo(module: string): Promise<string | undefined> {
  if (await canGoBuild("go", module)) return "go";
  // Parts are built in parallel: download Go once for all.
  goDownload ??= downloadGo(module);
  return await goDownload;
}

let goDownload: Promise<string | undefined> | undefined;

async function downloadGo(module: string): Promise<string | undefined> {
  const home = `${TOOLS_DIR}/${GO_DIR}`;
  const program = `${home}/bin/go`;
  if (await canGoBuild(program, module)) return program;
  await installOrUnpackPackages(["unzip"]);
  const placed = await installAtomically(
    "downloading Go (70 MB)",
    home,
    downloadGoToolchain,
  );
  return placed ? program : undefined;
}

/** Fills a staging directory and renames it into place; prints a failure. */
async function installAtomically(
  step: string,
  target: string,
  fill: (dir: string) => Promise<void>,
): Promise<boolean> {
  using _ = progress.beginLoggedStep(step);
  const staging = `${TOOLS_DIR}/.new-${crypto.randomUUID()}`;
  await Deno.mkdir(staging);
  try {
    await fill(staging);
    await Deno.rename(staging, target);
    return true;
  } catch (error) {
    progress.printLine(`${step}: ${toToolsmithError(error).message}`);
    await Deno.remove(staging, { recursive: true });
    return false;
  }
}

let packageQueue: Promise<void> = Promise.resolve();

/** Installs or unpacks packages, one call at a time. */
function installOrUnpackPackages(parts: Part[]): Promise<void> {
  packageQueue = packageQueue.then(async () => {
    if (!hasApt()) return;
    const missing = missingParts(parts, await findTools(parts))
      .filter((part) => PARTS[part].apt);
    const unpacked = missing.filter((part) => isUnpackedHere(PARTS[part]));
    if (canInstallWithApt()) {
      await aptInstall(missing.filter((part) => !unpacked.includes(part)));
    }
    for (const part of unpacked) {
      const packages = PARTS[part].apt!;
      const step = `downloading ${part} from Debian's packages`;
      const home = await unpackedDir(part);
      await installAtomically(
        step,
        home,
        (dir) => downloadAndUnpackPackages(packages, dir),
      );
    }
  });
  return packageQueue;
}

function isUnpackedHere({ unpackedFor }: PartSource): boolean {
  return unpackedFor === "all" ||
    (unpackedFor === "users" && Deno.uid() !== 0);
}

async function aptInstall(parts: Part[]): Promise<void> {
  if (parts.length === 0) return;
  const wanted = parts.flatMap((part) => PARTS[part].apt!);
  const packages = await missingPackages(wanted);
  using _ = progress.beginLoggedStep(
    `installing ${packages.join(", ")} with apt`,
  );
  try {
    await runAptGet(["install", ...packages]);
  } catch (error) {
    progress.printLine(toToolsmithError(error).message);
  }
}

/** The directory of a built program; its name has a hash of the module's files. */
async function goBuildDir(part: Part): Promise<string> {
  const module = `${PROJECT_ROOT}/tools/${part}`;
  const sources = Array.from(Deno.readDirSync(module), ({ name }) => name)
    .filter((name) => /\.(go|mod|sum)$/.test(name)).sort()
    .map((name) => Deno.readTextFile(`${module}/${name}`));
  const texts = await Promise.all(sources);
  return await pinnedDir(part, texts.join("") + Deno.build.target);
}

async function unpackedDir(part: Part): Promise<string> {
  return await pinnedDir(`${part}-packages`, PARTS[part].apt!.join(" "));
}

async function pinnedDir(name: string, pins: string): Promise<string> {
  const bytes = new TextEncoder().encode(pins);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return `${TOOLS_DIR}/${name}-${digest.toHex().slice(0, 12)}`;
}

/** Removes staging directories of killed runs; the caller holds the lock. */
async function removeStaleStaging(): Promise<void> {
  for await (const { name } of Deno.readDir(TOOLS_DIR)) {
    if (!name.startsWith(".new-")) continue;
    await Deno.remove(`${TOOLS_DIR}/${name}`, { recursive: true });
  }
}

function missingParts(parts: Part[], tools: Tools): Part[] {
  return parts.filter((part) => !tools[part]);
}

if (import.meta.main) {
  const unknown = Deno.args.find((name) => !(name in PARTS));
  if (unknown !== undefined) {
    progress.printLine(
      `no part "${unknown}": use one of ${ALL_PARTS.join(", ")}`,
    );
    Deno.exitCode = 2;
  } else {
    const parts = (Deno.args.length ? Deno.args : ALL_PARTS) as Part[];
    const tools = await setUpTools(parts);
    if (missingParts(parts, tools).length > 0) Deno.exitCode = 1;
  }
}
