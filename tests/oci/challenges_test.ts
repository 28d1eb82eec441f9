import { assert, assertEquals, assertThrows } from "@std/assert";
import fc from "fast-check";
import {
  chooseChallenge,
  isKnownScheme,
  parseChallenges,
  schemesOf,
} from "../../lib/oci/_challenges.ts";
import { RangesUnavailable } from "../../lib/oci/_ranges_unavailable.ts";

/** The challenges of a text: scheme and parameters. */
const read = (text: string) =>
  parseChallenges(text).map(({ scheme, params }) => [
    scheme,
    Object.fromEntries(params),
  ]);

Deno.test("parseChallenges() reads one challenge or several as servers write them", () => {
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
    // What is malformed ends it.
    ['Basic realm="x', [["Basic", {}]]],
    ["Basic, =x, Bearer", [["Basic", {}]]],
    ['"x", Basic', []],
  ];
  for (const [text, expected] of cases) {
    assertEquals(read(text), expected, text);
  }
});

Deno.test("parseChallenges() returns something for any text, in linear time", () => {
  fc.assert(fc.property(fc.string({ unit: "binary" }), (text) => {
    parseChallenges(text);
  }));
  for (const word of ["Basic ", 'a="', "a=", "a=b,", "\\", " ", "x"]) {
    const begun = performance.now();
    parseChallenges(`Basic ${word.repeat(20_000)}`);
    assert(performance.now() - begun < 5000, `${word} took long`);
  }
});

Deno.test("chooseChallenge() takes Bearer before Basic, and names what it cannot meet", () => {
  const choose = (text: string) => chooseChallenge(parseChallenges(text));
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
      RangesUnavailable,
      `it offers ${named}, not Basic or Bearer`,
    );
    assertEquals(schemesOf(parseChallenges(text)), named);
  }
  assertEquals(
    parseChallenges("basic, Bearer, Basic2, Negotiate").map(isKnownScheme),
    [true, true, false, false],
  );
});
