/**
 * Queries Deno's permissions without a prompt.
 *
 * @module
 */

export function isPermissionGranted(descriptor: Deno.PermissionDescriptor) {
  return Deno.permissions.querySync(descriptor).state === "granted";
}
