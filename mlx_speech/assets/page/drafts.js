/** What was changed and not saved, kept by the browser (IndexedDB) until it is. */

const DATABASE = "mlx_speech";
const STORE = "drafts";

/** The draft of a name: `{document, revision, time}`, or null where there is none, or the browser keeps nothing. */
export async function loadDraft(name) {
  try {
    return (await inStore("readonly", (store) => store.get(name))) ?? null;
  } catch {
    return null;
  }
}

/** Keep a draft. Says whether the browser could. */
export async function keepDraft(name, draft) {
  try {
    await inStore("readwrite", (store) => store.put(draft, name));
    return true;
  } catch {
    return false;
  }
}

export async function dropDraft(name) {
  try {
    await inStore("readwrite", (store) => store.delete(name));
  } catch {
    // a browser that keeps nothing has nothing to drop
  }
}

/** Do one thing in the store and wait for its result. */
async function inStore(mode, work) {
  const database = await openDatabase();
  try {
    return await settled(work(database.transaction(STORE, mode).objectStore(STORE)));
  } finally {
    database.close();
  }
}

function openDatabase() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE);
  return settled(request);
}

/** The result of a request of IndexedDB. */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
