import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  formatReference,
  invalidReferenceError,
  parseReference,
} from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { assertLinear } from "../support/assert_linear.ts";

const DIGEST = `sha256:${"0123456789abcdef".repeat(4)}`;

/** Text and its registry, repository, tag and digest. */
const REFERENCES: [string, string, string, string?, string?][] = [
  ["ghcr.io/owner/repo:1.0", "ghcr.io", "owner/repo", "1.0"],
  ["oci://ghcr.io/owner/repo:1.0", "ghcr.io", "owner/repo", "1.0"],
  ["OCI://GHCR.io/owner/repo:V_1", "GHCR.io", "owner/repo", "V_1"],
  ["localhost:5000/a", "localhost:5000", "a", "latest"],
  ["[::1]:5000/a/b/c:x", "[::1]:5000", "a/b/c", "x"],
  [`ghcr.io/o/r@${DIGEST}`, "ghcr.io", "o/r", undefined, DIGEST],
  [`ghcr.io/o/r:1@${DIGEST}`, "ghcr.io", "o/r", "1", DIGEST],
  ["h/a__b/c-d.e--f/0:_", "h", "a__b/c-d.e--f/0", "_"],
  [`h/a:${"t".repeat(128)}`, "h", "a", "t".repeat(128)],
];

for (const [text, registry, repository, tag, digest] of REFERENCES) {
  Deno.test(`parseReference() parses ${text.slice(0, 60)}`, () => {
    const parts = { registry, repository, tag, digest };
    const { kind, ...read } = parseReference(text);
    assertEquals(kind, "oci");
    assertEquals({ tag: undefined, digest: undefined, ...read }, parts);
    const plain = text.replace(/^oci:\/\//i, "").replace(/:1@/, "@");
    const written = formatReference({ kind, ...read });
    assertEquals(written, tag === "latest" ? `${plain}:latest` : plain);
    assertEquals(parseReference(written).repository, repository);
  });
}

/** Malformed text and part of the message. */
const WRONG: [string, string][] = [
  ["", "the reference has no repository"],
  ["repo", "the reference has no repository"],
  ["/repo:1", "the reference has no repository"],
  ["oci://", "the reference has no repository"],
  ["oci:///repo", "the reference has no repository"],
  ["ghcr.io/", '"" is not a repository name'],
  ["ghcr.io/:1", '"" is not a repository name'],
  ["ghcr.io/a//b", "not a repository name"],
  ["ghcr.io/a/", "not a repository name"],
  ["ghcr.io/-a", "not a repository name"],
  ["ghcr.io/a..b", "not a repository name"],
  ["ghcr.io/a___b", "not a repository name"],
  ["ghcr.io/ä", "not a repository name"],
  ["ghcr.io/../etc/passwd", "not a repository name"],
  ["oci://oci://ghcr.io/a", "not a registry host"],
  ["user@ghcr.io/a/b", "not a registry host"],
  ["-x/a/b", "not a registry host"],
  ["a b/c", "not a registry host"],
  ["ghcr.io:port/a", "not a registry host"],
  ["ghcr.io/a:", '"" is not a tag'],
  ["ghcr.io/a:.x", "not a tag"],
  ["ghcr.io/a:b:c", "not a tag"],
  ["ghcr.io/a:1 ", "not a tag"],
  ["ghcr.io/a:1\n", "not a tag"],
  [`ghcr.io/a:${"t".repeat(129)}`, "not a tag"],
  ["ghcr.io/a@", "not a digest"],
  ["ghcr.io/a@sha256:abc", "not a digest"],
  [`ghcr.io/a@${DIGEST.toUpperCase()}`, "not a digest"],
  [`ghcr.io/a@${DIGEST}@${DIGEST}`, "not a digest"],
  [`ghcr.io/a@${DIGEST}:1`, "not a digest"],
];

for (const [text, why] of WRONG) {
  Deno.test(`parseReference() rejects ${JSON.stringify(text.slice(0, 60))}: ${why}`, async () => {
    const error = await expectFailure(
      "reference_invalid",
      () => parseReference(text),
    );
    assertStringIncludes(error.message, why);
    assertStringIncludes(error.message, `"${text.replace(/^user@/, "…@")}"`);
    assert(error.hint, "no hint");
  });
}

Deno.test("parseReference() suggests the lower-case name for an upper-case repository", async () => {
  const { hint } = await expectFailure(
    "reference_invalid",
    () => parseReference("oci://ghcr.io/Owner/Repo:1"),
  );
  assertStringIncludes(hint!, "ghcr.io/owner/repo");
});

/** Generates references of the grammar. */
const REFERENCE = fc.record({
  registry: fc.stringMatching(
    /^[a-z0-9]([a-zA-Z0-9.-]{0,20}[a-z0-9])?(:[0-9]{1,5})?$/,
  ),
  repository: fc.stringMatching(
    /^[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,2}(\/[a-z0-9]+){0,3}$/,
  ),
  tag: fc.option(fc.stringMatching(/^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$/)),
  digest: fc.option(fc.stringMatching(/^sha256:[0-9a-f]{64}$/)),
});

Deno.test("formatReference() output parses back to the same reference", () => {
  fc.assert(fc.property(REFERENCE, ({ registry, repository, tag, digest }) => {
    const text = `${registry}/${repository}` +
      (tag === null ? "" : `:${tag}`) + (digest === null ? "" : `@${digest}`);
    const read = parseReference(text);
    assertEquals(read.registry, registry);
    assertEquals(read.repository, repository);
    assertEquals(read.tag, tag ?? (digest === null ? "latest" : undefined));
    assertEquals(read.digest, digest ?? undefined);
    const again = parseReference(formatReference(read));
    assertEquals(formatReference(again), formatReference(read));
    if (digest === null) assertEquals(again, read);
  }));
});

Deno.test("parseReference() returns a reference or throws reference_invalid, for any text", () => {
  const mixed = fc.array(fc.oneof(
    fc.constantFrom("oci://", "/", ":", "@", "sha256:", "a", "A", "..", "?"),
    fc.string(),
  )).map((parts) => parts.join(""));
  fc.assert(fc.property(mixed, (text) => {
    try {
      parseReference(text);
    } catch (error) {
      if (!(error instanceof ToolsmithError)) throw error;
      assertEquals(error.code, "reference_invalid");
      assert(error.message.length < 800, error.message);
    }
  }));
});

Deno.test("parseReference() rejects a malformed long name in linear time", async () => {
  for (const letters of ["a-", "a_", "a.", "a/", "://", "@", ":", "?"]) {
    await assertLinear(
      letters,
      (length) => `ghcr.io/${letters.repeat(length)}!`,
      (text) => expectFailure("reference_invalid", () => parseReference(text)),
      100_000,
    );
  }
});

Deno.test("invalidReferenceError() redacts user info and query, and truncates to 300 characters", () => {
  const shown: [string, string][] = [
    ["oci://t0ken@ghcr.io/a", "oci://…@ghcr.io/a"],
    ["https://u:t0ken@host/a?sig=x", "https://…@host/a?…"],
    ["t0ken@ghcr.io/a?b", "…@ghcr.io/a?b"],
    ["https://host/a?sig=x@y", "https://host/a?…"],
    ["a?b://c", "a?b://c"],
    ["?a://b?c", "?a://b?…"],
    ["://b?c", "://b?…"],
    ["x".repeat(300), "x".repeat(300)],
    ["x".repeat(301), `${"x".repeat(300)}…`],
  ];
  for (const [value, expected] of shown) {
    const { code, message, hint } = invalidReferenceError(value, "why", "hint");
    assertEquals(message, `Cannot use image source "${expected}": why`);
    assertEquals([code, hint], ["reference_invalid", "hint"]);
  }
  const { message } = invalidReferenceError("x", "y".repeat(301), "");
  assertEquals(message.endsWith(`: ${"y".repeat(300)}…`), true);
});

Deno.test("formatReference() writes the tag latest by default and prefers the digest", () => {
  const name = { kind: "oci", registry: "h:1", repository: "a/b" } as const;
  assertEquals(formatReference(name), "h:1/a/b:latest");
  const digest = `sha256:${"0".repeat(64)}` as const;
  assertEquals(
    formatReference({ ...name, tag: "x", digest }),
    `h:1/a/b@${digest}`,
  );
  assertEquals(parseReference("h:1/a/b").tag, "latest");
});
