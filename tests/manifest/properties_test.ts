/**
 * Property tests: reads and writes manifests with arbitrary content.
 */
import { assert, assertEquals } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  createManifestJson,
  formatManifestJson,
} from "../../lib/manifest/manifest_json.ts";
import {
  isValidImageName,
  parseManifest,
} from "../../lib/manifest/manifest.ts";
import { resolveToolPath } from "../../lib/manifest/tools.ts";
import { replaceImageFields } from "../../lib/manifest/write_manifest.ts";
import { assertLinear } from "../support/assert_linear.ts";

const FILE = "/srv/.toolsmith/tools.json";

const sha256 = fc.stringMatching(/^[0-9a-f]{64}$/);
const name = fc.string({ minLength: 1, maxLength: 128 }).filter(
  isValidImageName,
)
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
  image: image.map((image) => createManifestJson(image).image),
  tools,
  operations: fc.array(fc.string({ minLength: 1 })),
});

/** Runs a function that may only throw ToolsmithError. */
function onlyTypedErrors<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof ToolsmithError)) throw error;
    assert(error.message.length < 4000, "the message is too long");
    return undefined;
  }
}

Deno.test("parseManifest() restores the manifest that formatManifestJson() formatted", () => {
  fc.assert(fc.property(manifest, (written) => {
    const read = parseManifest(formatManifestJson(written), FILE);
    assertEquals(read.image.name, written.image.name);
    assertEquals(read.image.sha256, written.image.qcow2_sha256);
    assertEquals(
      Object.entries(read.tools),
      Object.entries(written.tools),
    );
    assertEquals(read.operations, written.operations);
  }));
});

Deno.test("replaceImageFields() writes the image that parseManifest() reads back, and changes nothing else", () => {
  fc.assert(fc.property(manifest, image, (before, image) => {
    const text = formatManifestJson(before);
    const after = replaceImageFields(text, FILE, image, { setName: true });
    const read = parseManifest(after, FILE);
    assertEquals([read.image.name, read.image.sha256], [
      image.name,
      image.sha256,
    ]);
    assertEquals(JSON.parse(after).tools, JSON.parse(text).tools);
    assertEquals(JSON.parse(after).operations, before.operations);
    // A second update changes nothing.
    assertEquals(
      replaceImageFields(after, FILE, image, { setName: true }),
      after,
    );
  }));
});

Deno.test("parseManifest() returns a manifest or throws ToolsmithError, for any input", () => {
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
    // A valid manifest with one character replaced.
    fc.tuple(manifest, fc.nat(), fc.string()).map(([manifest, at, text]) => {
      const whole = formatManifestJson(manifest);
      const place = at % whole.length;
      return whole.slice(0, place) + text + whole.slice(place + 1);
    }),
  );
  fc.assert(
    fc.property(texts, image, (text, image) => {
      onlyTypedErrors(() => parseManifest(text, FILE));
      onlyTypedErrors(() => replaceImageFields(text, FILE, image));
    }),
    { numRuns: 500 },
  );
});

Deno.test("parseManifest() and replaceImageFields() take time linear in the manifest's length", async () => {
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
  const image = { name: "a", source: "b", sha256: "c" };
  for (const [what, make] of Object.entries(long)) {
    await assertLinear(what, make, (text) => {
      onlyTypedErrors(() => parseManifest(text, FILE));
      onlyTypedErrors(() => replaceImageFields(text, FILE, image));
    });
  }
});

Deno.test("resolveToolPath() allows a command only if operations is empty or lists the command", () => {
  const rules = fc.record({ tools, operations: fc.array(fc.string()) });
  fc.assert(
    fc.property(rules, fc.string(), fc.nat(), (rules, word, at) => {
      const names = [...rules.operations, ...Object.keys(rules.tools), word];
      const command = names[at % names.length];
      const { operations, tools } = rules;
      const allowed = operations.length === 0 || operations.includes(command);
      const found = onlyTypedErrors(() => resolveToolPath(rules, command));
      assertEquals(found !== undefined, allowed);
      if (!allowed) return;
      assertEquals(
        found,
        Object.hasOwn(tools, command) ? tools[command] : command,
      );
    }),
  );
});
