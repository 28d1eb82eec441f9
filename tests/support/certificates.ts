/** A private certificate authority for one test. */
import { runProcess } from "../../lib/system/process.ts";
import { foundTools } from "./parts.ts";

/** A server's key and certificate, and the authority's certificate, as PEM files. */
export interface Certificate {
  /** The authority's own certificate, for `--ca-file`. */
  caFile: string;
  /** The server's certificate. */
  certFile: string;
  /** The server's private key, PKCS #8. */
  keyFile: string;
}

/**
 * Issues one certificate for all tests of a file, as that is slow.
 *
 * @param ignore Whether the tests are skipped.
 * @param names Host names besides 127.0.0.1 and localhost.
 * @returns A function that returns it while the tests run.
 */
export function certificateOfFile(
  ignore: boolean,
  names: string[] = [],
): () => Certificate {
  let dir: string;
  let certificate: Certificate;
  Deno.test.beforeAll(async () => {
    dir = await Deno.makeTempDir({ prefix: "toolsmith-test-" });
    if (!ignore) certificate = await issueCertificate(dir, names);
  });
  Deno.test.afterAll(() => Deno.remove(dir, { recursive: true }));
  return () => certificate;
}

/**
 * Makes an authority, and a certificate for loopback and further names.
 *
 * @param dir An existing directory for the files.
 * @param names Host names besides 127.0.0.1 and localhost.
 * @returns The files.
 */
export async function issueCertificate(
  dir: string,
  names: string[] = [],
): Promise<Certificate> {
  const alternatives = ["localhost", ...names].map((name) => `DNS:${name}`);
  await Deno.writeTextFile(
    `${dir}/openssl.cnf`,
    `[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = Test authority
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
subjectAltName = IP:127.0.0.1,${alternatives.join(",")}
`,
  );
  const openssl = async (command: string) => {
    const args = [...command.split(" "), "-days", "2"];
    const { code, stderr } = await runProcess(foundTools.openssl!, {
      args,
      cwd: dir,
    });
    if (code !== 0) throw new Error(`openssl failed: ${stderr}`);
  };
  // An elliptic-curve key: RSA takes seconds on a busy host.
  const fresh =
    "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -config openssl.cnf";
  await openssl(`req -x509 ${fresh} -keyout ca.key -out ca.pem`);
  await openssl(`req -new ${fresh} -subj /CN=server -keyout key.pem -out csr`);
  await openssl(
    "x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial " +
      "-extfile openssl.cnf -extensions server -out cert.pem",
  );
  return {
    caFile: `${dir}/ca.pem`,
    certFile: `${dir}/cert.pem`,
    keyFile: `${dir}/key.pem`,
  };
}

/**
 * Reads the bytes out of a PEM file.
 *
 * @param path The file.
 * @returns The bytes of its first block.
 */
export async function readPem(path: string): Promise<Uint8Array<ArrayBuffer>> {
  const pem = await Deno.readTextFile(path);
  const base64 = pem.match(/-----BEGIN [^-]+-----([^-]+)-----END/)![1];
  return Uint8Array.fromBase64(base64);
}
