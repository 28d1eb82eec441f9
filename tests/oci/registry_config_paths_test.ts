import { assertEquals } from "@std/assert";
import { join } from "@std/path";
import { processEnvironment } from "../../lib/environment.ts";
import { registryConfigPaths } from "../../lib/oci/registry_config_paths.ts";
import { temporaryDir } from "../support/directory.ts";
import { replaceMethod } from "../support/replace_method.ts";

const USUAL = ["/etc/containerd/certs.d", "/etc/docker/certs.d"];

Deno.test({
  name:
    "registryConfigPaths() returns Docker's directory, its credential helpers and the mirror directories",
  ignore: Deno.build.os === "windows",
  async fn() {
    await using dir = await temporaryDir();
    const at = (name: string) => join(dir.path, name);
    await Deno.mkdir(at("bin"));
    for (const name of ["pass", "ecr", "other"]) {
      await Deno.writeTextFile(at(`bin/docker-credential-${name}`), "");
    }
    const variables = { DOCKER_CONFIG: dir.path, PATH: at("bin") };
    const files = (more = {}) =>
      registryConfigPaths(new Map(Object.entries({ ...variables, ...more })));
    using _host = replaceMethod(processEnvironment, { get: () => undefined });
    const config = (text: string) =>
      Deno.writeTextFile(at("config.json"), text);
    assertEquals(await files(), [dir.path, ...USUAL]);
    await config(JSON.stringify({
      credsStore: "pass",
      credHelpers: { "a.example": "ecr", "b.example": "missing" },
    }));
    const helpers = ["pass", "ecr"].map((it) =>
      at(`bin/docker-credential-${it}`)
    );
    assertEquals(await files(), [dir.path, ...USUAL, ...helpers]);
    for (const text of ["no JSON", "7", '{ "credHelpers": null }']) {
      await config(text);
      assertEquals(await files(), [dir.path, ...USUAL], text);
    }
    const TOOLSMITH_REGISTRY_CONFIG = "/a:/none/b";
    assertEquals(await files({ TOOLSMITH_REGISTRY_CONFIG }), [
      ...[dir.path, "/a", "/none/b"],
    ]);
    const home = { DOCKER_CONFIG: "", HOME: "/home/me" };
    assertEquals(await files(home), ["/home/me/.docker", ...USUAL]);
  },
});

Deno.test("registryConfigPaths() falls back to the process environment, as oras does", async () => {
  using _host = replaceMethod(processEnvironment, {
    get: (name: string) =>
      name === "DOCKER_CONFIG" ? "/none/docker" : undefined,
  });
  assertEquals(await registryConfigPaths(new Map()), [
    "/none/docker",
    ...USUAL,
  ]);
});
