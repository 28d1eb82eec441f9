import { assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  chooseAuthChallenge,
  formatAuthSchemes,
  hasSupportedScheme,
  parseAuthChallenges,
} from "../../lib/oci/_auth_challenges.ts";
import { RangesUnavailableError } from "../../lib/transfer/byte_source.ts";
import { assertLinear } from "../support/assert_linear.ts";

/** Parses challenges to pairs of scheme and parameters. */
const read = (text: string) =>
  parseAuthChallenges(text).map(({ scheme, params }) => [
    scheme,
    Object.fromEntries(params),
  ]);

Deno.test("parseAuthChallenges() parses one or several WWW-Authenticate challenges", () => {
  const cases: [string, unknown[]][] = [
    ["", []],
    ["Basic", [["Basic", {}]]],
    [
      'bearer Realm="https://a/?x=1,2" , service=reg,scope="a \\"b\\""',
      [["bearer", {
        realm: "https://a/?x=1,2",
        service: "reg",
        scope: 'a "b"',
      }]],
    ],
    ['Negotiate, Basic realm="x"', [["Negotiate", {}], ["Basic", {
      realm: "x",
    }]]],
    ["Negotiate YIIAbc+/-._~==, NTLM", [["Negotiate", {}], ["NTLM", {}]]],
    [
      'Digest realm="a, Basic", qop="auth,auth-int", nonce = 7 ,Basic realm=x',
      [["Digest", { realm: "a, Basic", qop: "auth,auth-int", nonce: "7" }], [
        "Basic",
        { realm: "x" },
      ]],
    ],
    [", ,\tBasic\trealm=x,,", [["Basic", { realm: "x" }]]],
    ["Bearer realm=https://a/token?x=1", [["Bearer", {
      realm: "https://a/token?x=1",
    }]]],
    // The first malformed part ends the list.
    ['Basic realm="x', [["Basic", {}]]],
    ["Basic, =x, Bearer", [["Basic", {}]]],
    ['"x", Basic', []],
    ["realm=x, Basic", []],
  ];
  for (const [text, expected] of cases) {
    assertEquals(read(text), expected, text);
  }
});

Deno.test("parseAuthChallenges() never throws and takes linear time, for any text", async () => {
  fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => {
    parseAuthChallenges(text);
  }));
  for (const word of ["Basic ", 'a="', "a=", "a=b,", "\\", " ", "x"]) {
    const text = (length: number) => `Basic ${word.repeat(length)}`;
    await assertLinear(word, text, parseAuthChallenges, 20_000);
  }
});

Deno.test("chooseAuthChallenge() prefers Bearer to Basic and names unsupported schemes", () => {
  const choose = (text: string) =>
    chooseAuthChallenge(parseAuthChallenges(text));
  const bearer = choose('BASIC realm="x", BEARER realm="y", Negotiate');
  assertEquals([bearer.scheme, bearer.params.get("realm")], ["bearer", "y"]);
  assertEquals(choose('Negotiate, Basic realm="x"').scheme, "basic");
  for (
    const [text, named] of [
      ["Negotiate x, Digest realm=x", "Negotiate, Digest"],
      ["x".repeat(50), "x".repeat(40)],
      ["a, b, c, d, e, f", "a, b, c, d, e"],
      ["", "no authentication"],
    ]
  ) {
    assertThrows(
      () => choose(text),
      RangesUnavailableError,
      `the server offers ${named}, not Basic or Bearer`,
    );
    assertEquals(formatAuthSchemes(parseAuthChallenges(text)), named);
  }
  assertEquals(
    parseAuthChallenges("basic, Bearer, Basic2, Negotiate").map(
      hasSupportedScheme,
    ),
    [true, true, false, false],
  );
});
