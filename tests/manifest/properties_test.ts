/**
 * The manifest's reader and writer, whatever the text is.
 */
import { cpuUsage } from "node:process";
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { consumerManifest, formatManifest } from "../../lib/manifest/format.ts";
import { isImageName, parseManifest } from "../../lib/manifest/manifest.ts";
import { resolveTool } from "../../lib/manifest/tools.ts";
import { setImage } from "../../lib/manifest/write.ts";

const FILE = "/srv/.toolsmith/tools.json";

const sha256 = fc.stringMatching(/^[0-9a-f]{64}$/);
const name = fc.string({ minLength: 1, maxLength: 128 }).filter(isImageName)
  .filter((name) => name.trim() !== "");
const source = fc.stringMatching(
  /^oci:\/\/[a-z]{1,9}\.io\/[a-z0-9]{1,9}:[a-z0-9]{1,9}$/,
);
const image = fc.record({ name, source, sha256 });
const tools = fc.dictionary(
  fc.string(),
  fc.string().map((rest) => `/${rest}`),
);
const manifest = fc.record({
  image: image.map((image) => consumerManifest(image).image),
  tools,
  operations: fc.array(fc.string({ minLength: 1 })),
});

/** Runs something that may only fail with a typed error. */
function typed<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    assert(error.message.length < 4000, "the message is too long");
    return undefined;
  }
}

Deno.test("a manifest is read as it was written", () => {
  fc.assert(fc.property(manifest, (written) => {
    const read = parseManifest(formatManifest(written), FILE);
    assertEquals(read.image.name, written.image.name);
    assertEquals(read.image.sha256, written.image.qcow2_sha256);
    assertEquals(
      Object.entries(read.tools),
      Object.entries(written.tools),
    );
    assertEquals(read.operations, written.operations);
  }));
});

Deno.test("an image that is put into a manifest is the one that is read, and nothing else changes", () => {
  fc.assert(fc.property(manifest, image, (before, image) => {
    const text = formatManifest(before);
    const after = setImage(text, FILE, image, { rename: true });
    const read = parseManifest(after, FILE);
    assertEquals([read.image.name, read.image.sha256], [
      image.name,
      image.sha256,
    ]);
    assertEquals(JSON.parse(after).tools, JSON.parse(text).tools);
    assertEquals(JSON.parse(after).operations, before.operations);
    // Again, nothing is left to change.
    assertEquals(setImage(after, FILE, image, { rename: true }), after);
  }));
});

Deno.test("whatever a manifest holds, it is read or refused with a typed error", () => {
  const field = fc.constantFrom(
    ..."image tools operations $schema name qcow2 qcow2_sha256 tarball sha256 path x-a __proto__"
      .split(" "),
  );
  const nested = fc.letrec((tie) => ({
    value: fc.oneof(
      { maxDepth: 4 },
      fc.string(),
      fc.constantFrom(null, true, 0, "/a", "a".repeat(64), "oci://a.io/b:c"),
      fc.array(tie("value"), { maxLength: 3 }),
      fc.array(fc.tuple(field, tie("value")), { maxLength: 6 })
        .map((members) => Object.fromEntries(members)),
    ),
  })).value;
  const texts = fc.oneof(
    fc.string(),
    fc.json(),
    nested.map((value) => JSON.stringify(value)),
    // A good one, with something else at a place of its text.
    fc.tuple(manifest, fc.nat(), fc.string()).map(([manifest, at, text]) => {
      const whole = formatManifest(manifest);
      const place = at % whole.length;
      return whole.slice(0, place) + text + whole.slice(place + 1);
    }),
  );
  fc.assert(
    fc.property(texts, image, (text, image) => {
      typed(() => parseManifest(text, FILE));
      typed(() => setImage(text, FILE, image));
    }),
    { numRuns: 500 },
  );
});

/** How much of a processor a manifest takes at best, in milliseconds: a busy host changes nothing of that. */
function quickest(text: string): number {
  const image = { name: "a", source: "b", sha256: "c" };
  return Math.min(...[1, 2, 3].map(() => {
    const begun = cpuUsage();
    typed(() => parseManifest(text, FILE));
    typed(() => setImage(text, FILE, image));
    return cpuUsage(begun).user / 1000;
  }));
}

Deno.test("the time that a manifest takes grows with its length alone", () => {
  const long: Record<string, (n: number) => string> = {
    "quotes that are escaped": (n) => `"${'\\"'.repeat(n)}`,
    "a string without end": (n) => `{"image": "${"a\\\\".repeat(n)}`,
    "lists in lists": (n) => "[".repeat(n) + "]".repeat(n),
    "lists without end": (n) => "[".repeat(n),
    "many fields": (n) =>
      `{${Array.from({ length: n / 5 }, (_, i) => `"x-${i}":{}`).join()}}`,
    "blanks": (n) => " ".repeat(n) + "}",
    "a long name": (n) => `{"image":{"name":"${"n".repeat(n)}"}}`,
  };
  for (const [what, make] of Object.entries(long)) {
    const [short, four] = [50_000, 200_000].map((n) => quickest(make(n)));
    // Where it grows with the square, it is 16; a few ms measure nothing.
    assert(four < 10 * short + 50, `${what}: ${short} ms, ${four} ms`);
  }
});

Deno.test("a tool is allowed if no tool is named, or it is; and nothing else is run by its name", () => {
  const rules = fc.record({ tools, operations: fc.array(fc.string()) });
  fc.assert(
    fc.property(rules, fc.string(), fc.nat(), (rules, word, at) => {
      const names = [...rules.operations, ...Object.keys(rules.tools), word];
      const command = names[at % names.length];
      const { operations, tools } = rules;
      const allowed = operations.length === 0 || operations.includes(command);
      const found = typed(() => resolveTool(rules, command));
      assertEquals(found !== undefined, allowed);
      if (!allowed) return;
      assertEquals(
        found,
        Object.hasOwn(tools, command) ? tools[command] : command,
      );
    }),
  );
});
