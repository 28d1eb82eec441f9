import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { join } from "@std/path";
import { foundTools } from "../support/parts.ts";
import { jsonLines, testWithImage as test } from "../support/workspace.ts";

if (foundTools.oras) Deno.env.set("TOOLSMITH_ORAS", foundTools.oras);

const ALL = { permissions: ["-A"] };

test("publish prints a summary and a manifest snippet that hydrate accepts", async (bench) => {
  const { work, registry, sha256 } = bench;
  const reference = `${registry.host}/owner/vm:1.0`;
  const args = ["publish", "dist/image.qcow2", reference];
  const { code, stdout, stderr } = await work.toolsmith(args, ALL);
  assertEquals(code, 0, stderr);
  assertStringIncludes(stdout, reference);
  assertStringIncludes(stdout, sha256);
  await Deno.writeTextFile(
    join(work.dir, ".toolsmith", "tools.json"),
    stdout.slice(stdout.indexOf("{")),
  );
  const hydrated = await work.toolsmith(["hydrate", "--json"]);
  assertEquals(hydrated.code, 0, hydrated.stderr);
  const { outcome, digest } = jsonLines(hydrated.stdout).last;
  assertEquals([outcome, digest], ["pulled", `sha256:${sha256}`]);
});

test("publish --json prints the result as its last line", async (bench) => {
  const { work, registry, sha256 } = bench;
  const reference = `${registry.host}/owner/vm:1.0`;
  const args = ["publish", "dist/image.qcow2", reference, "--json"];
  const { code, stdout, stderr } = await work.toolsmith(
    [...args, "--verify=pull", "--attempts", "3", "--interval", "0.1"],
    ALL,
  );
  assertEquals(code, 0, stderr);
  const { events, last } = jsonLines(stdout);
  assertEquals(last.type, "result");
  assertEquals(last.reference, reference);
  assertEquals(last.qcow2_sha256, sha256);
  assertEquals(
    last.bytes,
    (await Deno.stat(join(work.dir, "dist/image.qcow2"))).size,
  );
  const digest = await fetch(
    `${registry.url}/v2/owner/vm/manifests/1.0`,
    { headers: { accept: "application/vnd.oci.image.manifest.v1+json" } },
  ).then(async (response) => {
    await response.body?.cancel();
    return response.headers.get("docker-content-digest");
  });
  assertEquals(last.digest, digest);
  assert(events.some(({ type }) => type === "publish_poll"));
});

test("publish --write-manifest updates a manifest in place, or rejects it before the push", async (bench) => {
  const { work, registry, sha256 } = bench;
  const path = join(work.dir, "kept.json");
  const old = `{"tools":{}, "image":{"name":"kept","qcow2":"old.qcow2",
    "qcow2_sha256":"${"0".repeat(64)}"}}`;
  await Deno.writeTextFile(path, old);
  const reference = `${registry.host}/owner/vm:1.0`;
  const args = ["publish", "dist/image.qcow2", reference];
  const write = (file: string) =>
    work.toolsmith([...args, "--write-manifest", file], ALL);
  const { code, stderr } = await write("kept.json");
  assertEquals(code, 0, stderr);
  assertEquals(
    await Deno.readTextFile(path),
    old.replace("0".repeat(64), sha256)
      .replace("old.qcow2", `oci://${reference}`),
  );
  await Deno.writeTextFile(path, "{");
  const refused = await write("kept.json");
  assertEquals(refused.code, 11);
  assert(!refused.stderr.includes("push"), refused.stderr);
});

test("publish writes a job summary and step outputs in GitHub Actions", async (bench) => {
  const { work, registry, sha256 } = bench;
  const summary = join(work.dir, "summary");
  const outputs = join(work.dir, "outputs");
  const reference = `${registry.host}/owner/vm:1.0`;
  const { code, stderr } = await work.toolsmith(
    ["publish", "dist/image.qcow2", reference],
    { ...ALL, env: { GITHUB_STEP_SUMMARY: summary, GITHUB_OUTPUT: outputs } },
  );
  assertEquals(code, 0, stderr);
  assertStringIncludes(await Deno.readTextFile(summary), sha256);
  assertStringIncludes(await Deno.readTextFile(outputs), reference);
});

test("init --ref writes a manifest that hydrate accepts", async (bench) => {
  const { work, registry } = bench;
  const reference = `${registry.host}/owner/vm:1.0`;
  const run = (...args: string[]) => work.toolsmith(args, ALL);
  assertEquals((await run("publish", "dist/image.qcow2", reference)).code, 0);
  const { code, stdout, stderr } = await run("init", "--ref", reference);
  assertEquals(code, 0, stderr);
  const path = join(work.dir, ".toolsmith", "tools.json");
  assertEquals(stdout, `${path}\n`);
  assertEquals((await run("hydrate")).code, 0);
  assertEquals((await run("init", "--ref", reference)).code, 2);
  assertEquals((await run("init", "--ref", reference, "--update")).code, 0);
});

test("publish exits with the status of the error's code", async ({ work, registry }) => {
  const raw = join(work.dir, "raw.qcow2");
  await Deno.writeFile(raw, new Uint8Array(1000));
  const cases: [string[], number][] = [
    [["no.qcow2", `${registry.host}/o/r:1`], 13],
    [["raw.qcow2", `${registry.host}/o/r:1`], 44],
    [["dist/image.qcow2", "127.0.0.1:9/o/r:1", "--retries", "0"], 37],
    [["dist/image.qcow2", `${registry.host}/o/r:1`, "--extra", "x"], 2],
    [["dist/image.qcow2", `${registry.host}/o/r:1`, "--verify", "x"], 2],
    [["dist/image.qcow2"], 2],
  ];
  for (const [args, status] of cases) {
    const { code, stdout } = await work.toolsmith(["publish", ...args], ALL);
    assertEquals([code, stdout], [status, ""], args.join(" "));
  }
});

test("publish succeeds with a warning when GITHUB_STEP_SUMMARY or GITHUB_OUTPUT names a file it cannot write", async (bench) => {
  const { work, registry } = bench;
  const reference = `${registry.host}/owner/vm:1.0`;
  const args = ["publish", "dist/image.qcow2", reference, "--interval", "0.1"];
  const path = join(work.dir, "none", "file");
  const publish = (variable: string, ...flags: string[]) =>
    work.toolsmith([...args, ...flags], { ...ALL, env: { [variable]: path } });
  const said = await publish("GITHUB_STEP_SUMMARY");
  assertEquals(said.code, 0, said.stderr);
  assertStringIncludes(said.stdout, "For .toolsmith/tools.json:");
  assertStringIncludes(
    said.stderr,
    `warning: Cannot write to ${path}, which GITHUB_STEP_SUMMARY names: no such file`,
  );
  const { stdout } = await publish("GITHUB_OUTPUT", "--json");
  const { events, last } = jsonLines(stdout);
  assertEquals([events.at(-1).type, last.type], ["warning", "result"]);
});

test("publish prints its result even if the manifest cannot be written", async (bench) => {
  if (Deno.build.os !== "linux") return;
  const { work, registry } = bench;
  const reference = `${registry.host}/owner/vm:1.0`;
  const args = ["publish", "dist/image.qcow2", reference, "--interval", "0.1"];
  // Directories cannot be created in /proc.
  args.push("--write-manifest", "/proc/none/tools.json");
  const { code, stdout, stderr } = await work.toolsmith(args, ALL);
  assertEquals(code, 14, stderr);
  assertStringIncludes(stdout, "For .toolsmith/tools.json:");
  assertStringIncludes(stderr, "Cannot write manifest /proc/none/tools.json:");
  const json = await work.toolsmith([...args, "--json"], ALL);
  const { events, last } = jsonLines(json.stdout);
  assertEquals(last.type, "error");
  assert(!events.some(({ type }) => type === "result"));
});

test("publish hints at TMPDIR when it cannot create a temporary directory", async (bench) => {
  if (Deno.build.os === "windows") return;
  const { work, registry } = bench;
  const args = ["publish", "dist/image.qcow2", `${registry.host}/owner/vm:1.0`];
  const { code, stderr } = await work.toolsmith(
    [...args, "--verify=pull", "--interval", "0.1"],
    { ...ALL, env: { TMPDIR: join(work.dir, "none") } },
  );
  assertEquals(code, 2, stderr);
  assertStringIncludes(
    stderr,
    "error: Cannot create a temporary directory: no such file or directory [usage]\nhint: set TMPDIR to a directory that exists and is writable\n",
  );
});
