// A revision is opaque but for one rule: what stands before the last "-" names a log and is ordered as text, and of two
// revisions of one log the greater number is later.

function parts(revision) {
  const match = /^(.*)-(\d+)$/.exec(revision ?? "");
  return match ? { identity: match[1], number: BigInt(match[2]) } : null;
}

/** True only if `a` is known to come before `b`. */
export function isOlder(a, b) {
  const [left, right] = [parts(a), parts(b)];
  if (left === null || right === null) return false;
  return left.identity === right.identity ? left.number < right.number : left.identity < right.identity;
}

/** The later of two revisions. */
export function later(held, seen) {
  return !held || isOlder(held, seen) ? seen : held;
}

/** A few characters for people: the last digits of its number, "#001042". */
export function shortRevision(revision) {
  const known = parts(revision);
  return known ? `#${String(known.number).slice(-6)}` : (revision ?? "").slice(-8);
}
