/** The expected values are those of Go's `httpproxy` for the same variables. */
import { assertEquals } from "@std/assert";
import { findProxy } from "../../lib/system/find_proxy.ts";

const PROXY = "http://proxy.test:3128/";

/** Returns the URLs that a NO_PROXY rule exempts from the proxy. */
function directUrls(rule: string, addresses: string[]): string[] {
  const env = new Map([
    ["HTTP_PROXY", PROXY],
    ["HTTPS_PROXY", PROXY],
    ["NO_PROXY", rule],
  ]);
  return addresses.filter((text) => !findProxy(new URL(text), env));
}

Deno.test("findProxy() reads the variable for the URL's scheme, upper case before lower case", () => {
  const at = (text: string, env: Record<string, string>) =>
    findProxy(new URL(text), new Map(Object.entries(env)))?.href;
  const upper = { HTTP_PROXY: "http://a:1", HTTPS_PROXY: "http://b:2" };
  const lower = { http_proxy: "http://c:3", https_proxy: "http://d:4" };
  const [http, https] = ["http://x.test/", "https://x.test/"];
  const cases: [string, Record<string, string>, string | undefined][] = [
    [http, upper, "http://a:1/"],
    [https, upper, "http://b:2/"],
    [http, lower, "http://c:3/"],
    [https, lower, "http://d:4/"],
    [https, { ...upper, ...lower }, "http://b:2/"],
    [https, { ...lower, HTTPS_PROXY: "" }, "http://d:4/"],
    [http, { HTTPS_PROXY: "http://b:2" }, undefined],
    // Go ignores ALL_PROXY.
    [https, { ALL_PROXY: "http://e:5", all_proxy: "http://e:5" }, undefined],
    // In CGI, HTTP_PROXY comes from a client's header.
    [http, { ...upper, REQUEST_METHOD: "GET" }, undefined],
    [https, { ...upper, REQUEST_METHOD: "GET" }, "http://b:2/"],
    [https, { HTTPS_PROXY: "host:8080" }, "http://host:8080/"],
    [https, { HTTPS_PROXY: "10.0.0.1:8080" }, "http://10.0.0.1:8080/"],
    [https, { HTTPS_PROXY: "host" }, "http://host/"],
    [https, { HTTPS_PROXY: "https://u:p@host" }, "https://u:p@host/"],
    [https, { HTTPS_PROXY: "socks5://host:1080" }, "socks5://host:1080"],
    [https, { HTTPS_PROXY: "%" }, undefined],
  ];
  for (const [text, env, expected] of cases) {
    assertEquals(at(text, env), expected, `${text} ${JSON.stringify(env)}`);
  }
});

Deno.test("findProxy() returns no proxy for loopback hosts", () => {
  const here = [
    "http://localhost/",
    "https://localhost:5000/",
    "http://127.0.0.1:5000/",
    "http://127.9.8.7/",
    "http://[::1]:5000/",
  ];
  assertEquals(directUrls("", here), here);
  assertEquals(directUrls("", ["http://localhost.test/", "http://[::2]/"]), []);
});

/** A NO_PROXY rule, direct URLs and proxied URLs. */
const RULES: [string, string[], string[]][] = [
  ["*", ["http://a.test/", "https://1.2.3.4/"], []],
  ["x.test, *", ["http://a.test/"], []],
  ["", [], ["http://a.test/"]],
  [", ,", [], ["http://a.test/"]],
  [
    "a.test",
    ["http://a.test/", "https://a.test:444/", "http://b.a.test/"],
    ["http://ba.test/", "http://test/", "http://a.test.example/"],
  ],
  [".a.test", ["http://b.a.test/"], ["http://a.test/", "http://ba.test/"]],
  ["*.a.test", ["http://b.a.test/"], ["http://a.test/"]],
  ["A.Test", ["http://a.test/"], []],
  [" b.test ,\ta.test ", ["http://a.test/", "http://b.test/"], []],
  ["a.test:80", ["http://a.test/", "http://b.a.test/"], ["https://a.test/"]],
  ["a.test:443", ["https://a.test/"], ["http://a.test/"]],
  ["a.test:5000", ["https://a.test:5000/"], ["https://a.test/"]],
  ["a.test:", ["https://a.test/", "http://a.test:81/"], []],
  ["1.2.3.4", ["http://1.2.3.4/", "http://1.2.3.4:81/"], ["http://1.2.3.5/"]],
  ["1.2.3.4:80", ["http://1.2.3.4/"], ["https://1.2.3.4/"]],
  ["3.4", [], ["http://1.2.3.4/"]],
  [
    "10.0.0.0/8",
    ["http://10.1.2.3/", "http://10.255.255.255:81/"],
    ["http://11.0.0.1/", "http://a.test/", "http://[::a00:1]/"],
  ],
  ["10.1.2.3/8", ["http://10.9.9.9/"], ["http://11.0.0.1/"]],
  ["1.2.3.4/32", ["http://1.2.3.4/"], ["http://1.2.3.5/"]],
  ["1.2.3.4/33", [], ["http://1.2.3.4/"]],
  ["0.0.0.0/0", ["http://1.2.3.4/"], ["http://[2001:db8::1]/"]],
  ["::/0", ["http://[2001:db8::1]/"], ["http://1.2.3.4/"]],
  ["2001:db8::/32", ["http://[2001:db8:1::1]/"], ["http://[2001:db9::1]/"]],
  ["2001:db8::1", ["http://[2001:db8::1]/"], ["http://[2001:db8::2]/"]],
  ["[2001:db8::1]:80", ["http://[2001:db8::1]/"], ["https://[2001:db8::1]/"]],
  ["[2001:db8::1]", [], ["http://[2001:db8::1]/"]],
  [":80", [], ["http://a.test/", "http://1.2.3.4/"]],
  ["http://a.test", [], ["http://a.test/"]],
  ["a.test b.test", [], ["http://a.test/", "http://b.test/"]],
];

for (const [rule, direct, proxied] of RULES) {
  Deno.test(`findProxy() interprets NO_PROXY=${JSON.stringify(rule)} as Go does`, () => {
    assertEquals(directUrls(rule, [...direct, ...proxied]), direct);
  });
}
