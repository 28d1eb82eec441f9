import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  formatImageSource,
  parseImageSource,
} from "../../lib/manifest/image_source.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { assertLinear } from "../support/assert_linear.ts";

const DIGEST = `sha256:${"0123456789abcdef".repeat(4)}`;

Deno.test("parseImageSource() resolves paths and file URLs against the given directory", () => {
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

Deno.test("parseImageSource() returns a reference for oci:// and a URL for https://", () => {
  const oci = parseImageSource("oci://ghcr.io/a/b:1", "/");
  assertEquals(oci, parseReference("ghcr.io/a/b:1"));
  const url = parseImageSource("https://example.com/a.qcow2", "/");
  assert(url.kind === "https" && url.url.host === "example.com");
});

Deno.test("parseImageSource() rejects other schemes, blank text and files of other hosts", async () => {
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
    await expectFailure("reference_invalid", () => parseImageSource(text, "/"));
  }
});

Deno.test("parseImageSource() rejects a URL with a user name or a password alone", async () => {
  for (const user of ["user", ":s3cr3t", "user:"]) {
    const address = `https://${user}@example.com/a.qcow2`;
    await expectFailure(
      "reference_invalid",
      () => parseImageSource(address, "/"),
    );
  }
});

Deno.test("parseImageSource() does not repeat a URL's password in its error", async () => {
  const { message } = await expectFailure(
    "reference_invalid",
    () =>
      parseImageSource("https://user:s3cr3t@example.com/a.qcow2?t=k3y", "/"),
  );
  assert(!/s3cr3t|k3y/.test(message), message);
  assertStringIncludes(message, "example.com/a.qcow2");
});

Deno.test("parseImageSource() returns a source or throws ToolsmithError, for any text", () => {
  const mixed = fc.array(fc.oneof(
    fc.constantFrom("oci://", "https://", "file://", "file:", "/", "%", "@"),
    fc.string(),
    fc.constantFrom("https://a.example/b", "http://x.org:80?c=d#e"),
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

Deno.test("parseImageSource() restores the source that formatImageSource() formatted", () => {
  const path = fc.array(fc.string({ minLength: 1 })).map((parts) =>
    `/${parts.join("/")}`
  );
  fc.assert(fc.property(path, (path) => {
    const source = parseImageSource(path, "/srv");
    assertEquals(
      parseImageSource(formatImageSource(source), "/elsewhere"),
      source,
    );
  }));
  const url = fc.webUrl({ validSchemes: ["https"] });
  fc.assert(fc.property(url, (text) => {
    const written = formatImageSource(parseImageSource(text, "/srv"));
    assertEquals(formatImageSource(parseImageSource(written, "/srv")), written);
  }));
});

Deno.test("parseImageSource() takes time linear in the text's length", async () => {
  for (
    const part of ["://", "https://", "a/", "%41", "@", "file:", "oci://x/"]
  ) {
    const make = (length: number) => part.repeat(length / part.length);
    await assertLinear(part, make, (source) => {
      try {
        parseImageSource(source, "/srv");
      } catch (error) {
        assert(error instanceof ToolsmithError, `${error}`);
      }
    });
  }
});

Deno.test("formatImageSource() omits query strings, which may hold signatures", () => {
  const written: Record<string, string> = {
    "oci://ghcr.io/a/b:1": "oci://ghcr.io/a/b:1",
    [`oci://ghcr.io/a/b:1@${DIGEST}`]: `oci://ghcr.io/a/b@${DIGEST}`,
    "https://example.com/a?sig=1#x": "https://example.com/a",
    "/srv/a.qcow2": "/srv/a.qcow2",
  };
  for (const [text, shown] of Object.entries(written)) {
    assertEquals(formatImageSource(parseImageSource(text, "/")), shown);
  }
});

Deno.test("parseImageSource() and parseReference() show no password or signature in their errors", async () => {
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
    const error = await expectFailure(
      "reference_invalid",
      () => parse(source, "/"),
    );
    assert(!`${error.message} ${error.hint}`.includes("sekrit"), error.message);
  }
  const digest = "ghcr.io/Owner/repo@sha256:abc";
  const { message } = await expectFailure(
    "reference_invalid",
    () => parseReference(digest),
  );
  assert(message.includes(digest), message);
});
