import { assertEquals } from "@std/assert";
import {
  fetchDigestFromList,
  findDigestsInList,
} from "../../lib/hydrate/_checksum_list.ts";
import { issueCertificate } from "../support/certificates.ts";
import { temporaryDir } from "../support/directory.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { requires } from "../support/parts.ts";
import { startTlsServer } from "../support/tls_server.ts";

const A = "a".repeat(64);
const B = "b".repeat(64);
const MIB = 1024 * 1024;

Deno.test("findDigestsInList() matches whole file names and returns each digest once", () => {
  const list = [
    `${A}  one.img`,
    `${A.toUpperCase()} *one.img`,
    `SHA256 (one.img) = ${A}`,
    `${B}  two one.img`,
    `${B}  one.img.sig`,
    `${B}   one.img`,
    `\\${B}  three.img`,
    `SHA256 (./four.img) = ${B}`,
    `sha256 (five.img) = ${B}`,
    ` ${B}  six.img`,
    `${B}\tseven.img`,
  ].join("\n");
  const cases: Record<string, string[]> = {
    "one.img": [A],
    "two one.img": [B],
    " one.img": [B],
    "three.img": [B],
    "four.img": [B],
    "five.img": [B],
    "six.img": [],
    "seven.img": [],
  };
  for (const [name, expected] of Object.entries(cases)) {
    assertEquals(findDigestsInList(name, list), expected, name);
  }
  assertEquals(findDigestsInList("one.img", `${A}  one.img\n${B}  one.img`), [
    A,
    B,
  ]);
});

Deno.test({
  name:
    "fetchDigestFromList() downloads a checksum list and returns a file's digest",
  ...requires("openssl"),
  async fn() {
    await using dir = await temporaryDir();
    const certificate = await issueCertificate(dir.path);
    const { caFile } = certificate;
    const encoder = new TextEncoder();
    // A multi-byte character is split between two chunks.
    const words = encoder.encode(`# Prüfsummen\n${B}  grün.img\n`);
    const split = words.indexOf(0xc3, 20) + 1;
    const lines = `${A}  one.img\n${B}  two.img\n${A}  two.img\n${B}  a b%.img`;
    await using server = await startTlsServer(certificate, async (it) => {
      const [, kind, bytes] = /^\/(size|unsized)-(\d+)/.exec(it.path) ?? [];
      const size = Number(bytes ?? lines.length);
      if (it.path === "/words") {
        await it.head(200, { "content-length": words.length });
        await it.body(words.subarray(0, split));
        await new Promise((done) => setTimeout(done, 50));
        return await it.body(words.subarray(split));
      }
      const length: Record<string, number> = kind === "unsized"
        ? {}
        : { "content-length": size };
      await it.head(200, length);
      await it.body(encoder.encode(lines.padEnd(size, "\n")));
    });
    const digest = (list: string, file: string) =>
      fetchDigestFromList(
        new URL(list, server.url),
        new URL(file, "https://images.example/"),
        { caFile, retries: 0 },
      );
    assertEquals(await digest("/list", "dir/one.img?sig=x"), A);
    // Invalid percent-encoding: the name is used unchanged.
    assertEquals(await digest("/list", "a%20b%25.img"), B);
    assertEquals(await digest("/words", "gr%C3%BCn.img"), B);
    assertEquals(await digest(`/size-${MIB}`, "one.img"), A);
    for (const path of [`/size-${MIB + 1}`, `/unsized-${MIB + 1}`]) {
      const { message } = await expectFailure(
        "artifact_unsafe",
        () => digest(path, "one.img"),
      );
      assertEquals(
        message,
        `Cannot download ${server.url}${path}: the file is larger than the limit of ${MIB} bytes`,
      );
    }
    const cases = [["two.img", 2, "two.img"], ["none.img", 0, "none.img"], [
      "%zz",
      0,
      "%zz",
    ]];
    for (const [file, count, shown] of cases) {
      const { message, hint } = await expectFailure(
        "checksum_mismatch",
        () => digest("/list?sig=secret", `${file}`),
      );
      assertEquals(
        message,
        `Cannot use the checksum list ${server.url}/list: expected one SHA-256 of ${shown}, found ${count}`,
      );
      assertEquals(
        hint,
        "use the checksum list published beside the image, or pass the digest: --sha256 DIGEST",
      );
    }
  },
});
