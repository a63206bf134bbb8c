// A revision is opaque but for one rule: of two alike before the last "-", the greater number is later.

function parts(revision) {
  const match = /^(.*)-(\d+)$/.exec(revision ?? "");
  return match ? { identity: match[1], number: BigInt(match[2]) } : null;
}

/** True only if `a` is known to come before `b`; revisions of different logs are not ordered. */
export function isOlder(a, b) {
  const [left, right] = [parts(a), parts(b)];
  return left !== null && right !== null && left.identity === right.identity && left.number < right.number;
}

/** The later of two revisions; of two logs, the one held stays, for only a snapshot changes logs. */
export function later(held, seen) {
  if (!held) return seen;
  return isOlder(held, seen) ? seen : held;
}

/** A few characters for people: "#1042". */
export function shortRevision(revision) {
  const known = parts(revision);
  return known ? `#${known.number}` : (revision ?? "").slice(-8);
}
