/**
 * What a test takes the place of: a clock, a timer, a call of the system.
 *
 * @module
 */

/**
 * Puts something in the place of an object's fields.
 *
 * @param target The object, such as `globalThis` or `Deno`.
 * @param fields What stands there instead.
 * @returns Disposing puts back what was there.
 */
export function replace<T extends object>(
  target: T,
  fields: Partial<Record<keyof T, unknown>>,
): Disposable {
  const before: Partial<Record<keyof T, unknown>> = {};
  for (const name of Object.keys(fields) as (keyof T)[]) {
    before[name] = target[name];
  }
  Object.assign(target, fields);
  return { [Symbol.dispose]: () => void Object.assign(target, before) };
}
