import { assert, assertEquals } from "@std/assert";
import {
  ipNetworkScope,
  isInIpRange,
  isLoopbackHost,
  type NetworkScope,
  parseIpBits,
} from "../../lib/system/ip_address.ts";

Deno.test("ipNetworkScope() returns internet for public addresses only", () => {
  const private_ = `0.0.0.0 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1
    127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.168.1.1
    198.19.0.1 224.0.0.1 255.255.255.255 :: ::1 [::1] fe80::1 fe80::1%eth0
    fd00::1 fc00:: ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:7f00:1
    ::127.0.0.1 ::1234:808:808 64:ff9b::10.0.0.1 2002:7f00:1:: 64:ff9b:1:7f00::8.8.8.8
    2001:0:7f00:1:: 1.2.3 999.1.1.1.1 x`;
  const global_ = `1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255
    100.128.0.0 126.255.255.255 128.0.0.1 169.253.0.1 172.15.0.1 172.32.0.1
    192.167.1.1 192.169.1.1 198.17.0.1 198.20.0.1 223.255.255.255
    2606:4700::1111 [2a00::1] ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
    2001:db8::ffff:7f00:1 ::ffff:8.8.127.1`;
  for (const address of private_.split(/\s+/)) {
    assert(ipNetworkScope(address) !== "internet", address);
  }
  for (const address of global_.split(/\s+/)) {
    assertEquals(ipNetworkScope(address), "internet", address);
  }
});

/** First and last address of each range that is not on the internet. */
const RANGES: [string, string, NetworkScope][] = [
  ["0.0.0.0", "0.255.255.255", "host"],
  ["10.0.0.0", "10.255.255.255", "private"],
  ["100.64.0.0", "100.127.255.255", "private"],
  ["127.0.0.0", "127.255.255.255", "host"],
  ["169.254.0.0", "169.254.255.255", "host"],
  ["172.16.0.0", "172.31.255.255", "private"],
  ["192.0.0.0", "192.0.0.255", "host"],
  ["192.168.0.0", "192.168.255.255", "private"],
  ["198.18.0.0", "198.19.255.255", "host"],
  ["224.0.0.0", "255.255.255.255", "host"],
];

/** Adds a count to an IPv4 address. */
function addToAddress(address: string, count: number): string {
  const bytes = address.split(".").map(Number);
  const number = bytes.reduce((sum, byte) => sum * 256 + byte, 0) + count;
  return [24, 16, 8, 0].map((by) => number / 2 ** by & 255).join(".");
}

Deno.test("ipNetworkScope() recognises the first and last address of each special IPv4 range, also when embedded in IPv6", () => {
  const forms = [
    (address: string) => address,
    (address: string) => `::ffff:${address}`,
    (address: string) => `64:ff9b::${address}`,
    (address: string) => {
      const hex = address.split(".").map((it) => Number(it) + 256)
        .map((it) => it.toString(16).slice(1)).join("");
      return `2002:${hex.slice(0, 4)}:${hex.slice(4)}::1`;
    },
  ];
  for (const form of forms) {
    for (const [first, last, network] of RANGES) {
      for (const inside of [first, last, addToAddress(first, 1)]) {
        assertEquals(ipNetworkScope(form(inside)), network, form(inside));
      }
      for (const outside of [addToAddress(first, -1), addToAddress(last, 1)]) {
        // Skips the wrap-around at both ends of the address space.
        if (first === "0.0.0.0" && outside !== "1.0.0.0") continue;
        if (last === "255.255.255.255" && outside === "0.0.0.0") continue;
        assertEquals(ipNetworkScope(form(outside)), "internet", form(outside));
      }
    }
  }
});

Deno.test("ipNetworkScope() returns internet only for globally assigned IPv6 addresses", () => {
  const cases: Record<string, boolean> = {
    "1fff:ffff::1": true,
    "2000::": false,
    "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": false,
    "4000::1": true,
    "[2606:4700::1111]": false,
    "2606:4700::1111%eth0": false,
    // IPv4 bits at another position are not an embedded address.
    "0:0:0:0:1::": true,
    "::1:0:0:0": true,
    "0:0:0:0:ffff:0:808:808": true,
    "0:0:0:0:0:1:808:808": true,
    "64:ff9c::8.8.8.8": true,
    "65:ff9b::8.8.8.8": true,
    "2003:a00:1::": false,
    "2001:0:a00:1::": true,
    "2001:200::": false,
    // Groups keep their position, with and without "::".
    "64:ff9b:0:0:0:0:808:808": false,
    "2002:808:808:a00:1::": false,
    "2002:a00:1:808:808:1:1:1": true,
    "::ffff:808:7f00": false,
    "::ffff:7f00:808": true,
    "64:ff9b::808:a00": false,
    "64:ff9b::a00:808": true,
    "2606:4700": true,
    ":::": true,
    "2606::g": true,
    "": true,
    "1.1.1.1.": true,
    "0x7f.1.1.1": true,
  };
  for (const [address, expected] of Object.entries(cases)) {
    assertEquals(ipNetworkScope(address) !== "internet", expected, address);
  }
});

Deno.test("ipNetworkScope() returns private for private IPv6 networks, and host for loopback and link-local addresses", () => {
  const cases: Record<string, NetworkScope> = {
    "fc00::1": "private",
    "fdff:ffff::1": "private",
    "fbff::1": "host",
    "fe00::1": "host",
    "fe80::1%eth0": "host",
    "::1": "host",
    "::": "host",
    "::ffff:10.0.0.1": "private",
    "::ffff:127.0.0.1": "host",
    "localhost": "host",
  };
  for (const [address, expected] of Object.entries(cases)) {
    assertEquals(ipNetworkScope(address), expected, address);
  }
});

Deno.test("isLoopbackHost() accepts loopback names and addresses only", () => {
  for (
    const host of [
      "localhost",
      "LOCALHOST:5000",
      "127.0.0.1",
      "127.9.8.7:1",
      "[::1]",
      "[::1]:5000",
    ]
  ) {
    assert(isLoopbackHost(host), host);
  }
  for (
    const host of [
      "ghcr.io",
      "127.0.0.1.example.com",
      "localhost.example.com",
      "128.0.0.1",
      "[::2]:1",
      "10.127.0.0.1",
    ]
  ) {
    assert(!isLoopbackHost(host), host);
  }
});

Deno.test("parseIpBits() parses IPv4 and IPv6, and nothing else", () => {
  const cases: [string, bigint | undefined][] = [
    ["1.2.3.4", 0xffff_0102_0304n],
    ["::ffff:1.2.3.4", 0xffff_0102_0304n],
    ["2001:db8::1", 0x2001_0db8n << 96n | 1n],
    ["::", 0n],
    ["1:2:3:4:5:6:7:8", 0x1_0002_0003_0004_0005_0006_0007_0008n],
  ];
  for (
    const text of ["", "1", "abcd", "1.2.3", "1.2.3.256", "01.2.3.4", "[::1]"]
  ) {
    cases.push([text, undefined]);
  }
  for (const [text, bits] of cases) {
    assertEquals(parseIpBits(text), bits, text);
  }
});

Deno.test("isInIpRange() compares the prefix bits, and never matches IPv4 with IPv6", () => {
  const cases: [string, string, boolean][] = [
    ["10.1.2.3", "10.0.0.0/8", true],
    ["11.1.2.3", "10.0.0.0/8", false],
    ["10.1.2.3", "10.1.2.3/32", true],
    ["10.1.2.2", "10.1.2.3/32", false],
    ["10.1.2.2", "0.0.0.0/0", true],
    ["::1", "0.0.0.0/0", false],
    ["10.1.2.2", "::/0", false],
    ["fd00::1", "::/0", true],
    ["fd00::1", "fc00::/7", true],
    ["10.1.2.3", "10.0.0.0/33", false],
    ["::1", "::1/129", false],
    ["10.1.2.3", "ten/8", false],
  ];
  for (const [address, range, expected] of cases) {
    assertEquals(isInIpRange(parseIpBits(address)!, range), expected, range);
  }
});
