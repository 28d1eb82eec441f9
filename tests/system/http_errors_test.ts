import { assert, assertEquals } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  httpStatusError,
  toTransportError,
} from "../../lib/system/http_errors.ts";

/** HTTP statuses and their error code. */
const CODES: [number[], string][] = [
  [[401], "unauthorized"],
  [[403], "forbidden"],
  [[404, 410], "not_found"],
  [[429], "rate_limited"],
  [[408, 500, 502, 503, 599], "registry_unavailable"],
  [[400, 402, 405, 409, 411, 418, 428, 499], "failed"],
];

for (const [statuses, code] of CODES) {
  Deno.test(`httpStatusError() maps ${statuses.join(", ")} to ${code}`, () => {
    for (const status of statuses) {
      const error = httpStatusError(
        new Response(null, { status }),
        "https://example.org/a",
      );
      assertEquals(error.code, code, `${status}`);
      assertEquals(error.message.includes(`answered ${status}`), true);
    }
  });
}

const ADDRESS = "https://tls.example/certificate-refused";

/** Messages of `fetch`, and their error code. */
const FAILURES: [string, string][] = [
  ["Connect): dns error: failed to lookup address information", "dns_failed"],
  ["Connect): invalid peer certificate: UnknownIssuer", "tls_failed"],
  ["Connect): received fatal alert: HandshakeFailure", "tls_failed"],
  ["Connect): tcp connect error: Connection refused", "connection_failed"],
  ["Connect): tls handshake eof", "connection_failed"],
  [
    "SendRequest): peer closed connection without sending TLS close_notify: ",
    "transfer_interrupted",
  ],
  [
    "SendRequest): connection closed before message completed",
    "transfer_interrupted",
  ],
];

Deno.test("toTransportError() classifies a failed request by Deno's message, not by words in the URL", () => {
  for (const [said, code] of FAILURES) {
    const cause = new Error(`client error (${said}`);
    const url = `error sending request for url (${ADDRESS})`;
    const errors = [
      new TypeError(url, { cause }),
      new TypeError(`${url}: client error (${said}`),
    ];
    for (const thrown of errors) {
      const error = toTransportError(thrown, "the image", false);
      assert(error instanceof ToolsmithError);
      assertEquals([error.code, error.cause], [code, thrown], said);
      assert(error.message.startsWith("Cannot download the image: "));
      assert(error.hint);
    }
  }
  // The URL comes last, and the reason is unknown.
  const thrown = new TypeError(`it ended at ${ADDRESS}`);
  const error = toTransportError(thrown, "the image", false) as ToolsmithError;
  assertEquals(error.code, "transfer_interrupted");
  assertEquals(
    error.message,
    "Cannot download the image: the transfer was interrupted (it ended at )",
  );
});

Deno.test("toTransportError() reports a failed response body as interrupted, and returns NotCapable unchanged", () => {
  const refused = new TypeError("client error (Connect): Connection refused");
  const error = toTransportError(refused, "the image", true) as ToolsmithError;
  assertEquals(error.code, "transfer_interrupted");
  const denied = new Deno.errors.NotCapable("Requires net access");
  for (const begun of [true, false]) {
    assertEquals(toTransportError(denied, "the image", begun), denied);
  }
});
