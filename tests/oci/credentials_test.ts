import { assertEquals } from "@std/assert";
import {
  ghcrCredentials,
  NO_SECRETS,
  publishingEnvironment,
  redactSecrets,
  unusedTokenWarning,
} from "../../lib/oci/credentials.ts";

Deno.test("a token that ends in a line end is used without it", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken\n"], ["GHCR_USERNAME", "me"]]);
  assertEquals(ghcrCredentials("ghcr.io", env)?.token, "t0ken");
});

Deno.test("ghcr.io gets its token in whatever case it is written", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken"], ["GITHUB_ACTOR", "me"]]);
  const credentials = { user: "me", token: "t0ken" };
  for (const registry of ["ghcr.io", "GHCR.IO", "Ghcr.io"]) {
    assertEquals(ghcrCredentials(registry, env), credentials);
  }
  for (const registry of ["ghcr.io.example.com", "xghcr.io", "example.com"]) {
    assertEquals(ghcrCredentials(registry, env), undefined);
  }
});

Deno.test("a token without a user name is not used, and that is reported", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken"]]);
  for (const registry of ["ghcr.io", "GHCR.IO"]) {
    assertEquals(ghcrCredentials(registry, env), undefined);
    const warning = unusedTokenWarning(registry, env);
    assertEquals(warning?.startsWith("GHCR_TOKEN is not used"), true);
  }
  assertEquals(unusedTokenWarning("example.com", env), undefined);
  env.set("GHCR_USERNAME", "me");
  assertEquals(unusedTokenWarning("ghcr.io", env), undefined);
});

Deno.test("a token is taken out in every form that it has on the wire", () => {
  const credentials = { user: "jane", token: "gh+p/s3cr3t=" };
  const { user, token } = credentials;
  const forms = [
    token,
    encodeURIComponent(token),
    btoa(token),
    btoa(`${user}:${token}`),
  ];
  for (const form of forms) {
    const clean = redactSecrets(
      `Error: sent ${form}, then ${form}!`,
      credentials,
    );
    assertEquals(clean, "Error: sent ***, then ***!");
  }
});

Deno.test("an authorization header is cut whosever it is", () => {
  assertEquals(
    redactSecrets("> Authorization: Bearer abc.def\nError: x"),
    "> Authorization: Bearer ***\nError: x",
  );
});

Deno.test("the secret of a credential helper, and of a malformed entry, is cut", () => {
  assertEquals(
    redactSecrets('Error: {"Username":"u","Secret" : "s3\\"cr3t"}, x'),
    'Error: {"Username":"u","Secret" : "***"}, x',
  );
  assertEquals(
    redactSecrets("format: auth 'it's\na s3cr3t' does not conform the base64"),
    "format: auth '***' does not conform the base64",
  );
});

Deno.test("the query of a signed address is cut, the rest stays", () => {
  assertEquals(
    redactSecrets(
      'Error: Get "https://cdn.example.com/blob?sig=s3cr3t&se=2026": EOF, see http://a/?b=c',
    ),
    'Error: Get "https://cdn.example.com/blob?…": EOF, see http://a/?…',
  );
});

Deno.test("the token of GitHub Actions publishes there alone, and where no other is set", () => {
  const token = (...more: [string, string][]) =>
    publishingEnvironment(new Map([["GITHUB_TOKEN", "job"], ...more]))
      .get("GHCR_TOKEN");
  assertEquals(token(["GITHUB_ACTIONS", "true"]), "job");
  assertEquals(token(["GITHUB_ACTIONS", "true"], ["GHCR_TOKEN", "own"]), "own");
  assertEquals(token(), undefined);
  assertEquals(token(["GHCR_TOKEN", "own"]), "own");
});

Deno.test("of a user and a token both are needed, and GHCR_USERNAME wins", () => {
  const found = (...entries: [string, string][]) =>
    ghcrCredentials("ghcr.io", new Map(entries));
  const token: [string, string] = ["GHCR_TOKEN", "t"];
  assertEquals(found(["GHCR_USERNAME", "a"], ["GITHUB_ACTOR", "b"]), undefined);
  assertEquals(
    found(token, ["GHCR_USERNAME", "a"], ["GITHUB_ACTOR", "b"])?.user,
    "a",
  );
  assertEquals(
    found(token, ["GHCR_USERNAME", ""], ["GITHUB_ACTOR", "b"])?.user,
    "b",
  );
  assertEquals(found(["GHCR_TOKEN", " "], ["GITHUB_ACTOR", "b"]), undefined);
  assertEquals(unusedTokenWarning("ghcr.io", new Map()), undefined);
});

Deno.test("the programs that are started get none of the tokens that are not for them", () => {
  const names = ["GHCR_TOKEN", "GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN"];
  for (const name of names) assertEquals(NO_SECRETS[name], "");
});

Deno.test("of a program's words the first 16384 are kept, without what is empty around them", () => {
  assertEquals(redactSecrets(`${"x".repeat(16_384)}y`), "x".repeat(16_384));
  assertEquals(redactSecrets("\n x \n"), "x");
});
