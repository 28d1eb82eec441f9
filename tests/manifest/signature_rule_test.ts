import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { ToolsmithError } from "../../lib/errors.ts";
import {
  createSignatureRule,
  GITHUB_ISSUER,
} from "../../lib/manifest/signature_rule.ts";

const REPOSITORY = "https://github.com/owner/repo";
const WORKFLOW =
  `${REPOSITORY}/.github/workflows/publish-oci.yml@refs/heads/main`;
const KEY = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE2G2Y+2tabdTV5BcGiBIx0a9fAFwr
kBbmLSGtks4L3qX6yYY0zufBnhC8Ur/iy55GhWP/9A/bY2LhC30M9+RYtw==
-----END PUBLIC KEY-----`;

Deno.test("createSignatureRule() fills in GitHub's issuer and the workflow's repository", () => {
  assertEquals(createSignatureRule({ identity: WORKFLOW }), {
    identity: WORKFLOW,
    issuer: GITHUB_ISSUER,
    repository: REPOSITORY,
  });
  const repository = "https://github.com/owner/caller";
  const called = createSignatureRule({ identity: WORKFLOW, repository });
  assertEquals("repository" in called && called.repository, repository);
  const issuer = "https://token.example.com";
  assertEquals(createSignatureRule({ identity: WORKFLOW, issuer }), {
    identity: WORKFLOW,
    issuer,
  });
});

Deno.test("createSignatureRule() takes an e-mail address or a key", () => {
  const rule = { identity: "a@b.example", issuer: "https://a.example" };
  assertEquals(createSignatureRule(rule), rule);
  assertEquals(createSignatureRule({ key: `${KEY}\n` }), { key: KEY });
});

Deno.test("createSignatureRule() rejects other rules and says what to use", () => {
  const file = WORKFLOW.replace(/@.*/, "");
  const cases: [Parameters<typeof createSignatureRule>[0], RegExp][] = [
    [{}, /signature by nobody: expected/],
    [{ issuer: "https://a.example" }, /by nobody/],
    [{ identity: "" }, /by nobody/],
    [{ identity: file }, /expected either the URL/],
    [{ identity: `${file}@*/*` }, /expected either the URL/],
    [
      { identity: "https://github.com/*/repo/w.yml@main" },
      /expected either the URL/,
    ],
    [{ identity: "https://github.com/*@main" }, /expected either the URL/],
    [
      { identity: "http://github.com/o/r/w.yml@main" },
      /expected either the URL/,
    ],
    [
      { identity: "*@b.example", issuer: "https://a.example" },
      /expected either the URL/,
    ],
    [{ identity: "a@b.example" }, /its issuer is missing/],
    [{ identity: "https://gitlab.com/o/r//ci.yml@main" }, /issuer is missing/],
    [
      { identity: "a@b.example", issuer: "accounts" },
      /accounts is not an https/,
    ],
    [
      { identity: WORKFLOW, repository: "owner/repo" },
      /owner\/repo is not an https/,
    ],
    [{ key: KEY, identity: WORKFLOW }, /public key in PEM/],
    [{ key: KEY, issuer: GITHUB_ISSUER }, /public key in PEM/],
    [{ key: KEY.replaceAll("PUBLIC", "PRIVATE") }, /public key in PEM/],
    [{ key: "" }, /public key in PEM/],
  ];
  for (const [fields, message] of cases) {
    const error = assertThrows(
      () => createSignatureRule(fields),
      ToolsmithError,
      undefined,
      JSON.stringify(fields),
    );
    assertEquals(error.code, "usage");
    assertMatch(error.message, message, JSON.stringify(fields));
  }
});
