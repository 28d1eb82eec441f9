/**
 * Runs the shell steps of a GitHub workflow on this host, as GitHub's runner does. The
 * test replaces steps that use an action.
 */
import { join } from "@std/path";
import { parse } from "@std/yaml";
import { type ProcessResult, runProcess } from "../../lib/system/process.ts";
import { PROJECT_ROOT } from "../../scripts/deno.ts";

/** A step of a job. */
export interface WorkflowStep {
  name?: string;
  id?: string;
  if?: string;
  uses?: string;
  run?: string;
  with?: Record<string, string>;
  env?: Record<string, string>;
}

/** A job of a workflow. */
export interface WorkflowJob {
  env?: Record<string, string>;
  outputs?: Record<string, string>;
  steps: WorkflowStep[];
}

/** The fields of a workflow that tests use. */
export interface Workflow {
  on: Record<string, {
    inputs?: Record<string, { type: string; default: string | boolean }>;
    outputs?: Record<string, { value: string }>;
  }>;
  permissions: Record<string, string>;
  jobs: Record<string, WorkflowJob>;
}

/** Reads a workflow of this project. */
export function readWorkflow(name: string): Workflow {
  const path = join(PROJECT_ROOT, ".github", "workflows", name);
  return parse(Deno.readTextFileSync(path)) as Workflow;
}

/** The fields of a composite action that tests use. */
export interface Action {
  inputs: Record<string, { description: string; default: string }>;
  outputs: Record<string, { description: string; value: string }>;
  runs: { using: string; steps: WorkflowStep[] };
}

/** Reads the action of this project. */
export function readAction(): Action {
  return parse(
    Deno.readTextFileSync(join(PROJECT_ROOT, "action.yml")),
  ) as Action;
}

/** Options of {@linkcode runJob}. */
export interface JobOptions {
  /** The checkout. */
  cwd: string;
  /** Context values by full name: `inputs.x`, `github.x`, `runner.temp`. */
  context: Record<string, string>;
  /** Added to every step's environment, overriding the step's own. */
  env?: Record<string, string>;
  /** Runs only the steps with these names. @default {undefined} all */
  only?: string[];
  /** Replaces an action with these inputs. @default {undefined} nothing */
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
  job: WorkflowJob,
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

/** Evaluates a condition of the form `inputs.x != ''`, or `inputs.x`. */
function isWanted(
  step: WorkflowStep,
  context: Record<string, string>,
): boolean {
  const [, input] = /^(inputs\.\w+)(?: != '')?$/.exec(step.if ?? "") ?? [];
  return input === undefined || !["", "false"].includes(context[input]);
}

async function runStep(
  step: WorkflowStep,
  files: string,
  options: JobOptions,
  result: JobResult,
): Promise<ProcessResult> {
  const script = join(files, "step.sh");
  const outputs = join(files, "outputs");
  await Deno.writeTextFile(script, step.run!);
  await Deno.writeTextFile(outputs, "");
  const env = expandAll(step.env, options.context, result.outputs);
  // Later steps see what a step adds to PATH.
  const added = (await Deno.readTextFile(join(files, "path"))).split("\n");
  const path = options.env?.PATH ?? Deno.env.get("PATH")!;
  // GitHub's command line for `shell: bash`.
  const output = await runProcess("bash", {
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
    timeoutMs: 1_200_000,
  });
  readOutputs(await Deno.readTextFile(outputs), (name, value) => {
    result.outputs[`${step.id}.${name}`] = value;
  });
  return output;
}

/** Parses outputs: `name=value`, or `name<<END` and lines up to `END`. */
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
    ) => [key, expand(String(text), context, outputs)]),
  );
}

/** Expands `${{ … }}`; an unknown name is an error. */
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
