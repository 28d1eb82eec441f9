import { assert, assertEquals } from "@std/assert";
import { join } from "@std/path";
import { COMPLETION_SCRIPTS } from "../../lib/cli/completion_scripts.ts";
import { temporaryDir } from "../support/directory.ts";
import { failure } from "../support/failure.ts";
import { perform, recordedIo } from "../support/io.ts";

/** What the command prints, with this for the nearest manifest. */
async function completions(args: string[], manifest?: unknown) {
  await using dir = await temporaryDir();
  const path = join(dir.path, "tools.json");
  const text = typeof manifest === "string"
    ? manifest
    : JSON.stringify(manifest);
  if (manifest !== undefined) await Deno.writeTextFile(path, text);
  const before = Deno.env.get("TOOLSMITH_MANIFEST");
  Deno.env.set("TOOLSMITH_MANIFEST", path);
  try {
    const recorded = recordedIo();
    assertEquals(await perform(["completions", ...args], recorded), 0);
    assertEquals([recorded.results, recorded.told()], [[], ""]);
    return recorded.printed;
  } finally {
    if (before === undefined) Deno.env.delete("TOOLSMITH_MANIFEST");
    else Deno.env.set("TOOLSMITH_MANIFEST", before);
  }
}

const candidates = (words: string[], manifest?: unknown) =>
  completions(["candidates", "--", ...words], manifest);

Deno.test("completions prints a script for each shell, and takes nothing for it", async () => {
  for (const shell of ["bash", "zsh", "fish"] as const) {
    const script = COMPLETION_SCRIPTS[shell].trimEnd();
    assertEquals(await completions([shell]), [script]);
    const error = await failure(
      "usage",
      () => completions([shell, "--", "hydrate"]),
    );
    assertEquals(error.message, `completions ${shell} takes nothing after --`);
  }
  for (const words of [["tcsh"], [], ["bash", "zsh"]]) {
    await failure("usage", () => completions(words));
  }
});

Deno.test("candidates are a kind, and words with what they mean", async () => {
  const [kind, ...lines] = await candidates(["hyd"]);
  assertEquals([kind, lines.length], ["words", 1]);
  assert(/^hydrate\t\S.*\S$/.test(lines[0]), lines[0]);
  assertEquals(await candidates(["publish", ""]), ["file"]);
  const sizes = ["words", "512M", "1G", "2G", "4G"];
  assertEquals(await candidates(["run", "--memory", ""]), sizes);
});

Deno.test("candidates of a manifest are what a shell takes as it is, in one line each", async () => {
  const image = {
    ...{ name: "demo", qcow2: "oci://ghcr.io/owner/image:1.0" },
    qcow2_sha256: "0".repeat(64),
  };
  const tools = { fmt: "/opt/fmt", "li;touch owned": "/x", "$(id)": "/y" };
  const run = ["run", ""];
  assertEquals(await candidates(run, { image, tools }), [
    "words",
    "fmt\t/opt/fmt",
  ]);
  const ref = ["init", "--ref", ""];
  assertEquals(await candidates(ref, { image, tools }), [
    "words",
    "ghcr.io/owner/image:1.0",
  ]);
  // An image of this host has no reference, and what cannot be read says nothing.
  const file = { ...image, qcow2: "image.qcow2" };
  assertEquals(await candidates(ref, { image: file }), ["words"]);
  for (const manifest of [undefined, "{"]) {
    assertEquals(await candidates(run, manifest), ["words"]);
  }
});
