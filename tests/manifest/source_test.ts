import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import { formatSource, parseImageSource } from "../../lib/manifest/source.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { failure } from "../support/failure.ts";

const DIGEST = `sha256:${"0123456789abcdef".repeat(4)}`;

Deno.test("paths and file URLs are files, relative to the directory", () => {
  const files: Record<string, string> = {
    "/srv/a.qcow2": "/srv/a.qcow2",
    "a.qcow2": "/work/here/a.qcow2",
    "../a b.qcow2": "/work/a b.qcow2",
    "file:a.qcow2": "/work/here/a.qcow2",
    "file:/srv/a.qcow2": "/srv/a.qcow2",
    "FILE:///srv/a%20b.qcow2": "/srv/a b.qcow2",
    "file://localhost/srv/a.qcow2": "/srv/a.qcow2",
    "ghcr.io/owner/repo:1.0": "/work/here/ghcr.io/owner/repo:1.0",
  };
  for (const [text, path] of Object.entries(files)) {
    assertEquals(parseImageSource(text, "/work/here"), { kind: "file", path });
  }
});

Deno.test("an oci source is a reference, an https source a URL", () => {
  const oci = parseImageSource("oci://ghcr.io/a/b:1", "/");
  assertEquals(oci, parseReference("ghcr.io/a/b:1"));
  const url = parseImageSource("https://example.com/a.qcow2", "/");
  assert(url.kind === "https" && url.url.host === "example.com");
});

Deno.test("other schemes, blank sources and files of other hosts are refused", async () => {
  const sources = [
    "http://example.com/a.qcow2",
    "http:a",
    "docker://a/b",
    " oci://ghcr.io/a/b:1",
    "",
    " \n",
    "https://",
    "file://image.qcow2",
    "file://host/image.qcow2",
    "oci://",
  ];
  for (const text of sources) {
    await failure("reference_invalid", () => parseImageSource(text, "/"));
  }
});

Deno.test("an address with a user name or a password alone is refused, too", async () => {
  for (const user of ["user", ":s3cr3t", "user:"]) {
    const address = `https://${user}@example.com/a.qcow2`;
    await failure("reference_invalid", () => parseImageSource(address, "/"));
  }
});

Deno.test("a password in an address is not repeated in the error", async () => {
  const { message } = await failure(
    "reference_invalid",
    () =>
      parseImageSource("https://user:s3cr3t@example.com/a.qcow2?t=k3y", "/"),
  );
  assert(!/s3cr3t|k3y/.test(message), message);
  assertStringIncludes(message, "example.com/a.qcow2");
});

Deno.test("any text is a source, or is refused with a typed error", () => {
  const mixed = fc.array(fc.oneof(
    fc.constantFrom("oci://", "https://", "file://", "file:", "/", "%", "@"),
    fc.string(),
    fc.webUrl(),
  )).map((parts) => parts.join(""));
  fc.assert(fc.property(mixed, (text) => {
    try {
      parseImageSource(text, "/srv");
    } catch (error) {
      if (!(error instanceof ToolsmithError)) throw error;
      assertEquals(error.code, "reference_invalid");
    }
  }));
});

Deno.test("what is written of any source reads as the same", () => {
  const path = fc.array(fc.string({ minLength: 1 })).map((parts) =>
    `/${parts.join("/")}`
  );
  fc.assert(fc.property(path, (path) => {
    const source = parseImageSource(path, "/srv");
    assertEquals(parseImageSource(formatSource(source), "/elsewhere"), source);
  }));
  const url = fc.webUrl({ validSchemes: ["https"] });
  fc.assert(fc.property(url, (text) => {
    const written = formatSource(parseImageSource(text, "/srv"));
    assertEquals(formatSource(parseImageSource(written, "/srv")), written);
  }));
});

Deno.test("a source of 300,000 characters takes no more than linear time", () => {
  for (
    const part of ["://", "https://", "a/", "%41", "@", "file:", "oci://x/"]
  ) {
    const begun = performance.now();
    try {
      parseImageSource(part.repeat(300_000 / part.length), "/srv");
    } catch (error) {
      assert(error instanceof ToolsmithError, `${error}`);
    }
    assert(performance.now() - begun < 5000, `${part} took long`);
  }
});

Deno.test("sources are written for a person without signed queries", () => {
  const written: Record<string, string> = {
    "oci://ghcr.io/a/b:1": "oci://ghcr.io/a/b:1",
    [`oci://ghcr.io/a/b:1@${DIGEST}`]: `oci://ghcr.io/a/b@${DIGEST}`,
    "https://example.com/a?sig=1#x": "https://example.com/a",
    "/srv/a.qcow2": "/srv/a.qcow2",
  };
  for (const [text, shown] of Object.entries(written)) {
    assertEquals(formatSource(parseImageSource(text, "/")), shown);
  }
});

Deno.test("no message shows the password or the signature of a source", async () => {
  for (
    const source of [
      "oci://user:sekrit@ghcr.io/owner/repo:1",
      "http://user:sekrit@host/image.qcow2",
      "https://user:sekrit@[bad/image.qcow2",
      "http://host/image.qcow2?signature=sekrit",
      "user:sekrit@ghcr.io/owner/repo:1",
    ]
  ) {
    const parse = source.includes("://") ? parseImageSource : parseReference;
    const error = await failure("reference_invalid", () => parse(source, "/"));
    assert(!`${error.message} ${error.hint}`.includes("sekrit"), error.message);
  }
  const digest = "ghcr.io/Owner/repo@sha256:abc";
  const { message } = await failure(
    "reference_invalid",
    () => parseReference(digest),
  );
  assert(message.includes(digest), message);
});
