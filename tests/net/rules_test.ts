import { assertEquals, assertThrows } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  findRule,
  normalizeName,
  parseEgressRule,
} from "../../lib/net/rules.ts";

Deno.test("parseEgressRule() parses hosts, ports, wildcards, addresses and mappings", () => {
  const cases: Record<string, unknown> = {
    "PyPI.org": { host: "pypi.org", isWildcard: false },
    "pypi.org.": { host: "pypi.org", isWildcard: false },
    "bücher.example:443": {
      host: "xn--bcher-kva.example",
      isWildcard: false,
      port: 443,
    },
    "*.githubusercontent.com:443": {
      host: "githubusercontent.com",
      isWildcard: true,
      port: 443,
    },
    "my_host": { host: "my_host", isWildcard: false },
    "10.0.0.5:5432": { host: "10.0.0.5", isWildcard: false, port: 5432 },
    "db:5432=127.0.0.1:15432": {
      ...{ host: "db", isWildcard: false, port: 5432 },
      target: { hostname: "127.0.0.1", port: 15432 },
    },
    "db:5432=[::1]:5432": {
      ...{ host: "db", isWildcard: false, port: 5432 },
      target: { hostname: "::1", port: 5432 },
    },
  };
  for (const [text, expected] of Object.entries(cases)) {
    const { text: kept, ...rule } = parseEgressRule(text);
    assertEquals<unknown>([kept, rule], [text, expected]);
  }
});

Deno.test("parseEgressRule() rejects what is not one host", () => {
  const wrong = [
    ...["", " ", "*", "*.", "*:443", "https://pypi.org", "pypi.org/simple"],
    ...["a.test:0", "a.test:65536", "a.test:http", "a.test:", ":443", "a b"],
    ...["user@a.test", "a.test?x", "*.10.0.0.1", "*.*.test", "a.*", "1", "."],
    ...["127.1", "0x7f.0.0.1", "017700000001", "[::1]:80", "::1", "a%2eb"],
    ...["a.test=127.0.0.1:80", "a.test:80=127.0.0.1", "a.test:80=localhost:80"],
    ...[
      "a.test:80=127.0.0.1:0",
      "a.test:80=127.1:80",
      "*.a.test:80=1.2.3.4:80",
    ],
    `${"a.".repeat(127)}test`,
  ];
  for (const text of wrong) {
    const error = assertThrows(() => parseEgressRule(text), ToolsmithError);
    assertEquals([error.code, error.message], [
      "usage",
      `Invalid network rule: "${text}"`,
    ]);
  }
});

Deno.test("findRule() matches names, subdomains and ports, and prefers a mapping", () => {
  const rules = ["a.test", "*.b.test:443", "c.test:80", "c.test:80=127.0.0.1:9"]
    .map(parseEgressRule);
  const found = (host: string, port?: number) =>
    findRule(rules, host, port)?.text;
  assertEquals(found("a.test", 22), "a.test");
  assertEquals(found("x.a.test", 22), undefined);
  assertEquals(found("b.test", 443), undefined);
  assertEquals(found("xb.test", 443), undefined);
  assertEquals(found("x.y.b.test", 443), "*.b.test:443");
  assertEquals(found("x.b.test", 80), undefined);
  assertEquals(found("x.b.test"), "*.b.test:443");
  assertEquals(found("c.test", 80), "c.test:80=127.0.0.1:9");
  assertEquals(found("", 80), undefined);
});

Deno.test("normalizeName() ignores case and one final dot", () => {
  assertEquals(
    ["A.Test", "a.test.", "a.test.."].map(normalizeName),
    ["a.test", "a.test", "a.test."],
  );
});
