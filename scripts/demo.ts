/**
 * Shows the main job on real input: a QCOW2 is published to a real registry as
 * the guide says, hydrated from it, verified; and a guest runs a command.
 *
 *     deno task demo
 *
 * Everything happens in a directory of its own, which is removed at the end.
 *
 * @module
 */
import { run, spawn } from "../lib/system/process.ts";
import { denoArgs, ROOT } from "./deno.ts";
import { setup } from "./setup.ts";

const IMAGE_BYTES = 64 * 1024 * 1024;

const tools = await setup(["oras", "registry", "qemuImg", "qemu", "guest"]);
if (!tools.oras || !tools.registry || !tools.qemuImg) {
  console.error("the demo needs all of the above");
  Deno.exit(1);
}
Deno.env.set("TOOLSMITH_ORAS", tools.oras);
Deno.env.set("TOOLSMITH_TEST_REGISTRY", tools.registry);
// Not before the set-up: it looks for the registry when it is loaded.
const { startRegistry } = await import("../tests/support/registry.ts");

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
  await makeDisk(`${dir}/build/raw`);
  const build = { cwd: `${dir}/build` };
  await show(
    ["qemu-img", "convert", "-O", "qcow2", "raw", "dist/image.qcow2"],
    build,
  );
  const sum = await show(["sha256sum", "dist/image.qcow2"], build);
  const digest = sum.split(" ")[0];

  title("Publish it to a registry, as the guide's step 3 does");
  await show([
    "oras",
    "push",
    reference,
    `dist/image.qcow2:${type}`,
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
  if (tools.qemu && tools.guest) await runChapter(host);
  console.log("\nThat was all of it; everything it made is removed again.");
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
async function makeDisk(path: string) {
  using file = await Deno.open(path, { write: true, create: true });
  const chunk = new Uint8Array(65536);
  for (let written = 0; written < IMAGE_BYTES; written += chunk.length) {
    await file.write(crypto.getRandomValues(chunk));
  }
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
