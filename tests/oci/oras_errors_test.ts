import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import fc from "fast-check";
import { type ErrorCode, ToolsmithError } from "../../lib/errors.ts";
import { redactSecrets } from "../../lib/oci/ghcr_credentials.ts";
import { orasClient } from "../../lib/oci/oras_client.ts";
import { parseOrasError } from "../../lib/oci/_oras_errors.ts";
import { parseReference } from "../../lib/oci/reference.ts";
import { expectFailure } from "../support/expect_failure.ts";
import { temporaryDir } from "../support/directory.ts";
import { assertLinear } from "../support/assert_linear.ts";
import { foundTools, requires } from "../support/parts.ts";

const GHCR = parseReference("ghcr.io/owner/repo:1.0");
const GET = 'Error response from registry: GET "https://ghcr.io/v2/owner/repo';

/** Output of oras 1.3 and the expected error code. */
const WORDS: [ErrorCode, string][] = [
  ["unauthorized", "Error: ghcr.io/owner/repo:1.0: unauthorized: token needed"],
  ["unauthorized", `${GET}": response status code 401: Unauthorized`],
  ["unauthorized", "Error: basic credential not found\nPlease check whether …"],
  ["forbidden", "Error response from registry: denied: permission_denied"],
  ["forbidden", `${GET}": response status code 403: Forbidden`],
  [
    "not_found",
    "Error response from registry: ghcr.io/owner/repo:1.0: not found",
  ],
  ["not_found", `${GET}": response status code 404: Not Found`],
  ["rate_limited", "Error response from registry: toomanyrequests: slow down"],
  ["rate_limited", `${GET}": response status code 429: Too Many Requests`],
  [
    "rate_limited",
    "Error response from registry: denied: You have exceeded a secondary rate limit",
  ],
  [
    "registry_unavailable",
    `${GET}": response status code 503: Service Unavailable`,
  ],
  [
    "registry_unavailable",
    `${GET}": response status code 500: Internal Server Error`,
  ],
  [
    "tls_failed",
    "Error: tls: failed to verify certificate: x509: unknown authority",
  ],
  ["tls_failed", "Error: http: server gave HTTP response to HTTPS client"],
  ["dns_failed", "Error: dial tcp: lookup ghcr.io on 1.1.1.1:53: no such host"],
  ["dns_failed", "Error: lookup ghcr.io: Temporary failure in name resolution"],
  [
    "connection_failed",
    "Error: dial tcp 10.0.0.1:443: connect: connection refused",
  ],
  ["connection_failed", "Error: dial tcp 10.0.0.1:443: i/o timeout"],
  ["connection_failed", "Error: net/http: TLS handshake timeout"],
  [
    "connection_failed",
    "Error: dial tcp 10.0.0.1:443: connect: no route to host",
  ],
  ["transfer_interrupted", "Error: unexpected EOF"],
  ["transfer_interrupted", 'Error: Get "https://ghcr.io/v2/": EOF'],
  ["transfer_interrupted", "Error: read tcp: connection reset by peer"],
  ["transfer_interrupted", "Error: stream error: stream ID 3; INTERNAL_ERROR"],
  [
    "transfer_interrupted",
    "Error: http2: server sent GOAWAY and closed the connection; LastStreamID=7, ErrCode=NO_ERROR",
  ],
  ["checksum_mismatch", "Error: mismatched digest: sha256:…"],
  ["checksum_mismatch", "Error: content digest mismatch"],
  [
    "checksum_mismatch",
    "Error: invalid response; digest mismatch in Docker-Content-Digest",
  ],
  ["checksum_mismatch", "Error: trailing data"],
  ["checksum_mismatch", "Error: mismatch Content-Length"],
  ["disk_full", "Error: write /x/image.qcow2: no space left on device"],
  ["disk_full", "Error: write /x/image.qcow2: disk quota exceeded"],
  ["artifact_unsafe", "Error: path traversal disallowed"],
  ["artifact_unsafe", "Error: duplicate name"],
  ["artifact_unsafe", "Error: overwrite disallowed"],
  ["file_unreadable", "Error: open /ca.pem: no such file or directory"],
  [
    "credentials_failed",
    'Error: GET "https://ghcr.io/v2/": failed to resolve credential: connection refused',
  ],
  [
    "credentials_failed",
    "Error: error getting credentials - err: exit status 1, no space left on device",
  ],
  [
    "credentials_failed",
    'Error: exec: "docker-credential-x": executable file not found in $PATH',
  ],
  [
    "file_unreadable",
    "Error: failed to decode config file at /x/config.json: invalid config format: unexpected EOF",
  ],
  [
    "file_unreadable",
    "Error: failed to open config file at /dev/null/config.json: open /dev/null/config.json: not a directory",
  ],
  ["oras_failed", "Error: something that nobody foresaw"],
  ["oras_failed", ""],
];

for (const [code, text] of WORDS) {
  Deno.test(`parseOrasError() returns ${code} for ${JSON.stringify(text)}`, () => {
    const error = parseOrasError(text, GHCR, false);
    assertEquals(error.code, code);
    assertStringIncludes(error.message, "ghcr.io/owner/repo:1.0");
    assert(!error.message.endsWith("."), error.message);
    if (code !== "oras_failed") assert(error.hint, "no hint");
  });
}

Deno.test("parseOrasError() returns a short, terminal-safe ToolsmithError for any oras output", () => {
  const words = fc.constantFrom(
    ...WORDS.map(([, text]) => text),
    ..."\u001b[31m,\u202e,\n,\r\n,Error: ,https://,?sig=,open ,lookup ".split(
      ",",
    ),
  );
  const said = fc.array(fc.oneof(words, fc.string({ unit: "binary" })))
    .map((parts) => parts.join(""));
  fc.assert(fc.property(said, (text) => {
    const error = parseOrasError(redactSecrets(text), GHCR, false);
    assert(error instanceof ToolsmithError);
    assert(error.message.length < 500, error.message);
    // deno-lint-ignore no-control-regex
    assert(!/[\x00-\x1f\x7f-\x9f\u202a-\u202e]/.test(error.message));
  }));
});

Deno.test("parseOrasError() takes linear time in the length of oras's output", async () => {
  for (
    const word of ["https://", "open ", "lookup ", "authorization: ", "\n"]
  ) {
    await assertLinear(
      word,
      (length) => word.repeat(length),
      (text) => parseOrasError(redactSecrets(text), GHCR, false),
      60_000,
    );
  }
});

Deno.test("parseOrasError() keeps the last redacted lines of oras's output as the cause", () => {
  const lines = Array.from({ length: 12 }, (_, nth) => `line ${nth}`);
  const text = [...lines, "Error: denied: https://a.example/b?sig=s3cret"];
  const { cause } = parseOrasError(redactSecrets(text.join("\n")), GHCR, false);
  const { message } = cause as Error;
  assert(message.startsWith("oras: line 3\n"), message);
  assert(message.endsWith("https://a.example/b?…"), message);
  assertEquals(parseOrasError("", GHCR, false).cause, undefined);
});

Deno.test("parseOrasError() ignores error words inside registry, repository and tag names", () => {
  const names = [
    "ghcr.io/owner/certificate:1.0",
    "ghcr.io/rate-limit/forbidden:1.0",
    "ghcr.io/owner/repo:denied",
    "ghcr.io/owner/repo:denied--401",
    "ghcr.io/unauthorized/x509",
  ];
  for (const name of names) {
    const reference = parseReference(name);
    const shown = reference.tag === "latest" ? `${name}:latest` : name;
    const text =
      `Error response from registry: failed to fetch the content of "${shown}": ${shown}: not found`;
    assertEquals(
      parseOrasError(text, reference, false).code,
      "not_found",
      name,
    );
    const { registry, repository, tag } = reference;
    const address = `https://${registry}/v2/${repository}/manifests/${tag}`;
    const down =
      `Error response from registry: GET "${address}": response status code 503: Service Unavailable`;
    assertEquals(
      parseOrasError(down, reference, false).code,
      "registry_unavailable",
      name,
    );
  }
});

Deno.test("parseOrasError() uses the documented message and hint for unauthorized and forbidden", () => {
  const unauthorized = parseOrasError("Error: unauthorized: x", GHCR, true);
  assertStringIncludes(unauthorized.message, "Unauthorized");
  assertStringIncludes(unauthorized.hint!, "GHCR_TOKEN");
  assertStringIncludes(unauthorized.hint!, "read:packages");
  const forbidden = parseOrasError("Error: denied: x", GHCR, true);
  assertStringIncludes(forbidden.message, "Forbidden");
  assertStringIncludes(forbidden.hint!, "read:packages");
});

Deno.test("parseOrasError() mentions missing and private packages for ghcr.io without credentials", () => {
  const { hint } = parseOrasError("Error: unauthorized: x", GHCR, false);
  assertStringIncludes(hint!, "private or does not exist");
  const missing = parseOrasError("Error: x: not found", GHCR, false);
  assertStringIncludes(missing.hint!, "GHCR_USERNAME and GHCR_TOKEN");
});

Deno.test("parseOrasError() suggests oras login for registries other than ghcr.io", () => {
  const other = parseReference("registry.example.com/a/b:1");
  const { hint } = parseOrasError("Error: unauthorized: x", other, false);
  assertEquals(hint, "log in first: oras login registry.example.com");
});

Deno.test("parseOrasError() shows only the error line, without its prefix and truncated", () => {
  const text = `retrying\nError response from registry: ${
    "x".repeat(999)
  }\nUsage`;
  const { message } = parseOrasError(text, GHCR, false);
  assertStringIncludes(message, "ghcr.io/owner/repo:1.0 (oras: xxx");
  assert(!message.includes("retrying") && !message.includes("Usage"));
  assert(message.length < 500 && message.endsWith("…)"));
});

/** Responses of a registry and the expected error code. */
const ANSWERS: [ErrorCode, number, HeadersInit, string][] = [
  ["unauthorized", 401, {}, "UNAUTHORIZED"],
  ["unauthorized", 401, { "www-authenticate": 'Basic realm="x"' }, ""],
  ["forbidden", 403, {}, "DENIED"],
  ["not_found", 404, {}, "MANIFEST_UNKNOWN"],
  ["not_found", 404, {}, ""],
  ["rate_limited", 429, { "retry-after": "0" }, "TOOMANYREQUESTS"],
  ["registry_unavailable", 500, {}, ""],
  ["registry_unavailable", 503, {}, "UNAVAILABLE"],
];

Deno.test({
  name:
    "OrasClient.fetchManifest() with the real oras maps each registry response to its error code",
  ...requires("oras"),
  async fn() {
    // Concurrently, because oras retries some for seconds.
    await Promise.all(ANSWERS.map(async ([code, status, headers, word]) => {
      const errors = [{ code: word, message: "no" }];
      const body = word ? JSON.stringify({ errors }) : "";
      await using server = Deno.serve(
        { hostname: "127.0.0.1", port: 0, onListen() {} },
        () => new Response(body, { status, headers }),
      );
      // The name contains words that match other errors.
      const host = `127.0.0.1:${server.addr.port}`;
      const reference = parseReference(`${host}/certificate/denied:401`);
      await expectFailure(code, () => client().fetchManifest(reference));
    }));
  },
});

Deno.test({
  name:
    "OrasClient.fetchManifest() with the real oras reports a refused connection, an unknown host and a missing CA file",
  ...requires("oras"),
  async fn() {
    // Not a port that was free: another server may have got it meanwhile.
    const gone = parseReference("127.0.0.1:2/a/b:1");
    await expectFailure(
      "connection_failed",
      () => client().fetchManifest(gone),
    );
    const nowhere = parseReference("registry.invalid/a/b:1");
    await expectFailure("dns_failed", () => client().fetchManifest(nowhere));
    await using dir = await temporaryDir();
    const caFile = `${dir.path}/none.pem`;
    const error = await expectFailure(
      "file_unreadable",
      () => client({ caFile }).fetchManifest(gone),
    );
    assertStringIncludes(error.message, caFile);
  },
});

function client(options: { caFile?: string } = {}) {
  return orasClient({
    ...options,
    env: new Map([["TOOLSMITH_ORAS", foundTools.oras!]]),
  });
}

Deno.test("parseOrasError() shows the last line when oras prints no error line", () => {
  const { message } = parseOrasError("Copying blob\nkilled\n\n", GHCR, false);
  assertStringIncludes(message, "killed");
  assert(!message.includes("Copying"), message);
});

Deno.test("parseOrasError() shows the first of several error lines", () => {
  const text = "Copying\nError: first: not found\nerror: second\n";
  const { message } = parseOrasError(text, GHCR, false);
  assertEquals(
    message,
    "Not found: ghcr.io/owner/repo:1.0 (oras: first: not found)",
  );
  const silent = parseOrasError(" \n", GHCR, false);
  assertEquals(
    silent.message,
    "oras failed on ghcr.io/owner/repo:1.0 (oras: no output)",
  );
});

Deno.test("parseOrasError() suggests GHCR_TOKEN for not found on ghcr.io without credentials", () => {
  const other = parseReference("registry.example.com/a/b:1");
  const plain =
    "check owner, repository and tag; a private package may look like a missing one";
  const hint = (reference: typeof GHCR, loggedIn: boolean) =>
    parseOrasError("Error: x: not found", reference, loggedIn).hint;
  assertEquals(
    hint(GHCR, false),
    `${plain}: set GHCR_USERNAME and GHCR_TOKEN`,
  );
  assertEquals(hint(GHCR, true), plain);
  assertEquals(hint(other, false), plain);
});
