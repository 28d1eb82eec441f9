import { assertEquals } from "@std/assert";
import { statusError } from "../../lib/system/http_errors.ts";

/** What a status is told as. */
const CODES: [number[], string][] = [
  [[401], "unauthorized"],
  [[403], "forbidden"],
  [[404, 410], "not_found"],
  [[429], "rate_limited"],
  [[408, 500, 502, 503, 599], "registry_unavailable"],
  [[400, 402, 405, 409, 411, 418, 428, 499], "failed"],
];

for (const [statuses, code] of CODES) {
  Deno.test(`a server's answer ${statuses.join(", ")} is ${code}`, () => {
    for (const status of statuses) {
      const error = statusError(status, "https://example.org/a");
      assertEquals(error.code, code, `${status}`);
      assertEquals(error.message.includes(`answered ${status}`), true);
    }
  });
}
