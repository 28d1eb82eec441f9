/**
 * Runs the shell steps of a GitHub workflow as GitHub's runner does, on this
 * host. What steps do that use an action, the test does.
 *
 * @module
 */
import { join } from "@std/path";
import { parse } from "@std/yaml";
import { type Output, run } from "../../lib/system/process.ts";
import { ROOT } from "../../scripts/deno.ts";

/** A step of a job. */
export interface Step {
  name?: string;
  id?: string;
  if?: string;
  uses?: string;
  run?: string;
  with?: Record<string, string>;
  env?: Record<string, string>;
}

/** A job of a workflow. */
export interface Job {
  env?: Record<string, string>;
  outputs?: Record<string, string>;
  steps: Step[];
}

/** A workflow, as far as the tests look at it. */
export interface Workflow {
  on: Record<string, {
    inputs?: Record<string, { type: string; default: string }>;
    outputs?: Record<string, { value: string }>;
  }>;
  permissions: Record<string, string>;
  jobs: Record<string, Job>;
}

/** Reads a workflow of this project. */
export function readWorkflow(name: string): Workflow {
  const path = join(ROOT, ".github", "workflows", name);
  return parse(Deno.readTextFileSync(path)) as Workflow;
}

/** A composite action, as far as the tests look at it. */
export interface Action {
  inputs: Record<string, { description: string; default: string }>;
  outputs: Record<string, { description: string; value: string }>;
  runs: { using: string; steps: Step[] };
}

/** Reads the action of this project. */
export function readAction(): Action {
  return parse(Deno.readTextFileSync(join(ROOT, "action.yml"))) as Action;
}

/** What a job is run with. */
export interface JobOptions {
  /** The checkout. */
  cwd: string;
  /** `inputs.x`, `github.x`, `runner.temp`, by their whole names. */
  context: Record<string, string>;
  /** Added to the environment of every step; a step's own is overridden. */
  env?: Record<string, string>;
  /** Only the steps of these names. @default {undefined} all */
  only?: string[];
  /** Does what an action does with these inputs. @default {undefined} nothing */
  uses?: (action: string, inputs: Record<string, string>) => Promise<void>;
}

/** How a job ended. */
export interface JobResult {
  /** All that its steps printed. */
  log: string;
  /** The step that failed, if one did. */
  failed?: string;
  /** The outputs of all steps, as `step.output`. */
  outputs: Record<string, string>;
  /** The job summary. */
  summary: string;
}

/** Runs the shell steps of a job; after a failure only those of `always()`. */
export async function runJob(
  job: Job,
  options: JobOptions,
): Promise<JobResult> {
  const result: JobResult = { log: "", outputs: {}, summary: "" };
  const files = await Deno.makeTempDir({ prefix: "toolsmith-runner-" });
  const summary = join(files, "summary");
  await Deno.writeTextFile(summary, "");
  await Deno.writeTextFile(join(files, "path"), "");
  try {
    for (const step of job.steps) {
      const name = step.name ?? step.uses!;
      if (options.only && !options.only.includes(name)) continue;
      if (result.failed && step.if !== "always()") continue;
      if (!isWanted(step, options.context)) continue;
      if (!step.run) {
        if (!options.uses) continue;
        const inputs = expandAll(step.with, options.context, result.outputs);
        await options.uses(step.uses!, inputs);
        continue;
      }
      const { code, stdout, stderr } = await runStep(
        { ...step, env: { ...job.env, ...step.env } },
        files,
        options,
        result,
      );
      result.log += stdout + stderr;
      if (code !== 0) result.failed ??= name;
    }
    result.summary = await Deno.readTextFile(summary);
    return result;
  } finally {
    await Deno.remove(files, { recursive: true });
  }
}

/** Reads a condition of the form `inputs.x != ''`. */
function isWanted(step: Step, context: Record<string, string>): boolean {
  const [, input] = /^(inputs\.\w+) != ''$/.exec(step.if ?? "") ?? [];
  return input === undefined || context[input] !== "";
}

async function runStep(
  step: Step,
  files: string,
  options: JobOptions,
  result: JobResult,
): Promise<Output> {
  const script = join(files, "step.sh");
  const outputs = join(files, "outputs");
  await Deno.writeTextFile(script, step.run!);
  await Deno.writeTextFile(outputs, "");
  const env = expandAll(step.env, options.context, result.outputs);
  // What a step adds to PATH is there for those that follow.
  const added = (await Deno.readTextFile(join(files, "path"))).split("\n");
  const path = options.env?.PATH ?? Deno.env.get("PATH")!;
  // How GitHub starts bash where `shell: bash` is set.
  const output = await run("bash", {
    args: ["--noprofile", "--norc", "-eo", "pipefail", script],
    cwd: options.cwd,
    env: {
      ...env,
      RUNNER_TEMP: options.context["runner.temp"],
      GITHUB_OUTPUT: outputs,
      GITHUB_STEP_SUMMARY: join(files, "summary"),
      GITHUB_PATH: join(files, "path"),
      ...options.env,
      PATH: [...added.reverse(), path].filter(Boolean).join(":"),
    },
    timeoutMs: 120_000,
  });
  readOutputs(await Deno.readTextFile(outputs), (name, value) => {
    result.outputs[`${step.id}.${name}`] = value;
  });
  return output;
}

/** Reads outputs: `name=value`, or `name<<END` and lines up to `END`. */
function readOutputs(text: string, set: (name: string, value: string) => void) {
  const lines = text.split("\n");
  for (let at = 0; at < lines.length; at++) {
    const [, name, end] = /^([^=]+?)<<(.+)$/.exec(lines[at]) ?? [];
    if (end) {
      const last = lines.indexOf(end, at + 1);
      if (last < 0) throw new Error(`no ${end} follows: ${text}`);
      set(name, lines.slice(at + 1, last).join("\n"));
      at = last;
    } else if (lines[at] !== "") {
      const [name, ...value] = lines[at].split("=");
      set(name, value.join("="));
    }
  }
}

function expandAll(
  texts: Record<string, string> = {},
  context: Record<string, string>,
  outputs: Record<string, string>,
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(texts).map((
      [key, text],
    ) => [key, expand(text, context, outputs)]),
  );
}

/** Puts in the values of `${{ … }}`; what the test does not know is an error. */
export function expand(
  text: string,
  context: Record<string, string>,
  outputs: Record<string, string>,
): string {
  return text.replace(/\$\{\{\s*(.*?)\s*\}\}/g, (_, name: string) => {
    const output = /^steps\.(\w+)\.outputs\.(\w+)$/.exec(name);
    if (output) return outputs[`${output[1]}.${output[2]}`] ?? "";
    if (Object.hasOwn(context, name)) return context[name];
    throw new Error(`the workflow reads ${name}, which the test does not set`);
  });
}
