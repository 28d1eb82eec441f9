/**
 * Shows the main job on real input: a QCOW2 is published to a real registry as
 * the guide says, hydrated from it, verified; and a guest runs a command.
 *
 *     deno task demo
 *
 * Everything happens in a directory of its own, which is removed at the end. It
 * needs oras and a registry; without QEMU, the guest is left out.
 *
 * @module
 */
import { run, spawn } from "../lib/system/process.ts";
import { denoArgs, ROOT } from "./deno.ts";
import { setup } from "./setup.ts";
import { remedyOf } from "./setup/parts.ts";

const IMAGE_BYTES = 64 * 1024 * 1024;
/** Says that a cluster of a QCOW2 is in no snapshot. */
const COPIED = 1n << 63n;

const GUEST = ["qemuImg", "qemu", "guest"] as const;

const tools = await setup(["oras", "registry", ...GUEST]);
if (!tools.oras || !tools.registry) {
  console.error("the demo needs oras and a registry");
  Deno.exit(1);
}
Deno.env.set("TOOLSMITH_ORAS", tools.oras);
Deno.env.set("TOOLSMITH_TEST_REGISTRY", tools.registry);
// Not before the set-up: it looks for the registry when it is loaded.
const { startRegistry } = await import("../tests/support/registry.ts");
const { dataOffset, qcow2, writeImage } = await import(
  "../tests/support/qcow2.ts"
);

// Ctrl-C ends the step that runs; then this cleans up and ends, too.
Deno.addSignalListener("SIGINT", () => {});
const dir = await Deno.realPath(
  await Deno.makeTempDir({ prefix: "toolsmith-demo-" }),
);
try {
  await using registry = await startRegistry();
  await demo(registry.host.replace("127.0.0.1", "localhost"));
} catch (error) {
  console.error(`\nthe demo stopped: ${(error as Error).message}`);
  Deno.exitCode = 1;
} finally {
  await Deno.remove(dir, { recursive: true });
}

async function demo(host: string) {
  const reference = `${host}/owner/image:1.0`;
  const type = "application/vnd.fountain.toolsmith.qcow2";
  await Deno.mkdir(`${dir}/build/dist`, { recursive: true });
  await Deno.mkdir(`${dir}/host/.toolsmith`, { recursive: true });

  title("A QCOW2, and its SHA-256");
  const build = { cwd: `${dir}/build` };
  const image = "dist/image.qcow2";
  if (tools.qemuImg) {
    await Deno.writeFile(`${dir}/build/raw`, randomBytes());
    await show(["qemu-img", "convert", "-O", "qcow2", "raw", image], build);
  } else {
    await writeImage(`${dir}/build/${image}`, randomImage());
  }
  const sum = await show(["sha256sum", image], build);
  const digest = sum.split(" ")[0];

  title("Publish it to a registry, as the guide's step 3 does");
  await show([
    "oras",
    "push",
    reference,
    `${image}:${type}`,
    "--annotation",
    "org.opencontainers.image.title=image.qcow2",
    "--artifact-type",
    type,
  ], build);

  title("Name it in the manifest of another host");
  const manifest = {
    image: {
      name: "demo",
      tarball: "",
      sha256: "",
      qcow2: `oci://${reference}`,
      qcow2_sha256: digest,
    },
    tools: {},
    operations: [],
  };
  const text = JSON.stringify(manifest, null, 2);
  await Deno.writeTextFile(`${dir}/host/.toolsmith/tools.json`, text);
  console.log(text);

  title("Hydrate: found, pulled, verified, placed");
  const there = { cwd: `${dir}/host` };
  await show(["toolsmith", "hydrate"], there);

  title("Again: it is there, and still the one that was verified");
  await show(["toolsmith", "hydrate"], there);

  title("A wrong digest is refused before a byte is pulled");
  manifest.image.qcow2_sha256 = digest.replaceAll(
    /^./g,
    (c) => c === "0" ? "1" : "0",
  );
  await Deno.writeTextFile(
    `${dir}/host/.toolsmith/tools.json`,
    JSON.stringify(manifest),
  );
  await show(["toolsmith", "hydrate"], { ...there, fails: true });
  const missing = GUEST.filter((part) => !tools[part]);
  if (missing.length === 0) await runChapter(host);
  console.log("\nThat was all of it; everything it made is removed again.");
  for (const part of missing) {
    console.log(`Left out: a guest. ${part} is missing: ${remedyOf(part)}`);
  }
}

/** Publishes a guest, hydrates it, and runs a command in it, twice. */
async function runChapter(host: string) {
  const { buildGuest } = await import("./guest/build.ts");
  Deno.env.set("TOOLSMITH_QEMU", tools.qemu!);
  const reference = `${host}/owner/guest:1.0`;
  await Deno.mkdir(`${dir}/guest/dist`, { recursive: true });
  title("A guest: Debian's kernel, busybox and the QEMU guest agent");
  await Deno.copyFile(await buildGuest(), `${dir}/guest/dist/guest.qcow2`);
  const there = { cwd: `${dir}/guest` };
  const manifest = ".toolsmith/tools.json";
  await show([
    ...["toolsmith", "publish", "dist/guest.qcow2", reference],
    ...["--write-manifest", manifest],
  ], there);

  title("Run a command in it: hydrated, booted, saved for the next time");
  const command = ["uname", "-a"];
  await show(["toolsmith", "run", "--", ...command], there);

  title("Again: the machine is restored, not booted");
  await show(["toolsmith", "run", "--", ...command], there);
}

/** Bytes that no compression makes smaller, as a well-packed disk has. */
function randomBytes(): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(IMAGE_BYTES);
  for (let at = 0; at < bytes.length; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** A disk of such bytes as `qemu-img` would make it. */
function randomImage(): DataView {
  const clusterBits = 16;
  const count = IMAGE_BYTES >> clusterBits;
  const parts = { clusterBits, tables: [[]], size: IMAGE_BYTES };
  const start = dataOffset(parts);
  const entries = Array.from(
    { length: count },
    (_, index) => BigInt(start + (index << clusterBits)) | COPIED,
  );
  return qcow2({ ...parts, tables: [entries], data: randomBytes() });
}

function title(text: string) {
  console.log(`\n# ${text}`);
}

/** Shows a command and what it prints; returns the latter. */
async function show(
  command: string[],
  options: { cwd: string; fails?: boolean },
): Promise<string> {
  const shown = command.map((arg) => /[\s"']/.test(arg) ? `'${arg}'` : arg);
  console.log(`$ ${shown.join(" ")}`);
  const [program, args] = await realCommand(command);
  let printed = "";
  const decoder = new TextDecoder();
  const child = spawn(program, {
    args,
    cwd: options.cwd,
    stderr: "inherit",
    stdout: (chunk) => {
      printed += decoder.decode(chunk, { stream: true });
      Deno.stdout.writeSync(chunk);
    },
  });
  const { code } = await child.ended;
  if (options.fails) console.log(`(exit status ${code})`);
  if ((code !== 0) !== Boolean(options.fails)) {
    throw new Error(`${command.join(" ")} ended with status ${code}`);
  }
  return printed;
}

async function realCommand(
  [name, ...args]: string[],
): Promise<[string, string[]]> {
  switch (name) {
    case "toolsmith": {
      const cli = ["run", "-A", `${ROOT}/cli.ts`, ...args];
      return [Deno.execPath(), await denoArgs(cli)];
    }
    case "oras":
      return [tools.oras!, args];
    case "qemu-img":
      return [tools.qemuImg!, args];
    case "sha256sum": {
      const found = await run("sha256sum", { args: ["--version"] }).catch(() =>
        undefined
      );
      // macOS has it under another name.
      return found ? ["sha256sum", args] : ["shasum", ["-a", "256", ...args]];
    }
    default:
      throw new Error(`the demo does not know ${name}`);
  }
}
