import { assertEquals } from "@std/assert";
import {
  CLEARED_SECRET_VARIABLES,
  ghcrCredentialsFromEnv,
  redactSecrets,
  unusedGhcrTokenWarning,
  withGithubTokenAsGhcrToken,
} from "../../lib/oci/ghcr_credentials.ts";

Deno.test("ghcrCredentialsFromEnv() trims a trailing newline from GHCR_TOKEN", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken\n"], ["GHCR_USERNAME", "me"]]);
  assertEquals(ghcrCredentialsFromEnv("ghcr.io", env)?.password, "t0ken");
});

Deno.test("ghcrCredentialsFromEnv() returns credentials for ghcr.io in upper or lower case, and for no other host", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken"], ["GITHUB_ACTOR", "me"]]);
  const credentials = { user: "me", password: "t0ken" };
  for (const registry of ["ghcr.io", "GHCR.IO", "Ghcr.io"]) {
    assertEquals(ghcrCredentialsFromEnv(registry, env), credentials);
  }
  for (const registry of ["ghcr.io.example.com", "xghcr.io", "example.com"]) {
    assertEquals(ghcrCredentialsFromEnv(registry, env), undefined);
  }
});

Deno.test("unusedGhcrTokenWarning() warns about GHCR_TOKEN without a user name", () => {
  const env = new Map([["GHCR_TOKEN", "t0ken"]]);
  for (const registry of ["ghcr.io", "GHCR.IO"]) {
    assertEquals(ghcrCredentialsFromEnv(registry, env), undefined);
    const warning = unusedGhcrTokenWarning(registry, env);
    assertEquals(warning?.startsWith("GHCR_TOKEN is not used"), true);
  }
  assertEquals(unusedGhcrTokenWarning("example.com", env), undefined);
  env.set("GHCR_USERNAME", "me");
  assertEquals(unusedGhcrTokenWarning("ghcr.io", env), undefined);
});

Deno.test("redactSecrets() redacts the token in plain, URL-encoded and base64 form", () => {
  const [user, token] = ["jane", "gh+p/s3cr3t="];
  const credentials = { user, password: token };
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

Deno.test("redactSecrets() redacts any Authorization header", () => {
  assertEquals(
    redactSecrets("> Authorization: Bearer abc.def\nError: x"),
    "> Authorization: Bearer ***\nError: x",
  );
});

Deno.test("redactSecrets() redacts a credential helper's secret and a malformed auth entry", () => {
  assertEquals(
    redactSecrets('Error: {"Username":"u","Secret" : "s3\\"cr3t"}, x'),
    'Error: {"Username":"u","Secret" : "***"}, x',
  );
  assertEquals(
    redactSecrets("format: auth 'it's\na s3cr3t' does not conform the base64"),
    "format: auth '***' does not conform the base64",
  );
});

Deno.test("redactSecrets() redacts the query string of a signed URL and keeps the rest", () => {
  assertEquals(
    redactSecrets(
      'Error: Get "https://cdn.example.com/blob?sig=s3cr3t&se=2026": EOF, see http://a/?b=c',
    ),
    'Error: Get "https://cdn.example.com/blob?…": EOF, see http://a/?…',
  );
});

Deno.test("publishingEnvironment() uses GITHUB_TOKEN only in GitHub Actions and without GHCR_TOKEN", () => {
  const token = (...more: [string, string][]) =>
    withGithubTokenAsGhcrToken(new Map([["GITHUB_TOKEN", "job"], ...more]))
      .get("GHCR_TOKEN");
  assertEquals(token(["GITHUB_ACTIONS", "true"]), "job");
  assertEquals(token(["GITHUB_ACTIONS", "true"], ["GHCR_TOKEN", "own"]), "own");
  assertEquals(token(), undefined);
  assertEquals(token(["GHCR_TOKEN", "own"]), "own");
});

Deno.test("ghcrCredentialsFromEnv() needs a user and a token, and prefers GHCR_USERNAME", () => {
  const found = (...entries: [string, string][]) =>
    ghcrCredentialsFromEnv("ghcr.io", new Map(entries));
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
  assertEquals(unusedGhcrTokenWarning("ghcr.io", new Map()), undefined);
});

Deno.test("CLEARED_SECRET_VARIABLES sets token variables to an empty string", () => {
  const names = ["GHCR_TOKEN", "GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN"];
  for (const name of names) assertEquals(CLEARED_SECRET_VARIABLES[name], "");
});

Deno.test("redactSecrets() keeps the first 16384 characters and trims whitespace", () => {
  assertEquals(redactSecrets(`${"x".repeat(16_384)}y`), "x".repeat(16_384));
  assertEquals(redactSecrets("\n x \n"), "x");
});
