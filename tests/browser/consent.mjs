// The story of a patient and a radiologist, each in a browser of their own, at two hospitals: a code on paper, a passkey, a request, an allowance, images, a
// stop; then the same key from paper, and another patient with a wallet. Every page on the way is judged as pages.mjs judges.
//
//   node consent.mjs STORY.json
//
// STORY.json: { a, b: where the sites' pages are, by names that passkeys take; token: of the radiologist at b; code, study, uid, images: of the patient's study;
// walletCode: of a second study; wallet: [program, arguments...], which signs as tests/py/wallet.py does }. Prints what was seen and what is wrong as JSON.
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { PATIENCE, judging, launch } from './judge.mjs';

const story = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const screenshots = process.env.SCREENSHOTS;
const wrong = [];
const report = { judged: 0, reached: 0, steps: [], wrong };
const { watch, judge, byKeyboard } = judging([story.a, story.b], report);
const browser = await launch();

const AUTHENTICATOR = {
  protocol: 'ctap2',
  ctap2Version: 'ctap2_1',
  transport: 'internal',
  hasResidentKey: true,
  hasUserVerification: true,
  hasPrf: true,
  isUserVerified: true,
  automaticPresenceSimulation: true,
};

const step = name => report.steps.push(name);

async function person(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, reducedMotion: 'reduce', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  watch(page, options.expected);
  return page;
}

async function withPasskeys(page, device = AUTHENTICATOR) {
  const session = await page.context().newCDPSession(page);
  await session.send('WebAuthn.enable');
  const { authenticatorId } = await session.send('WebAuthn.addVirtualAuthenticator', { options: device });
  return { session, authenticatorId };
}

// In both colours and widths; what is folded is unfolded.
async function judged(page, name) {
  const folded = await page.evaluate(() => {
    const all = [...document.querySelectorAll('details:not([open])')];
    for (const one of all) one.open = true;
    return all.length;
  });
  for (const colorScheme of ['light', 'dark']) {
    for (const width of [1280, 320]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height: 900 });
      await judge(page, `${name} ${colorScheme} ${width}`);
      if (screenshots) await page.screenshot({ path: `${screenshots}/${name}-${colorScheme}-${width}.png`, fullPage: true });
    }
  }
  await byKeyboard(page, name);
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 1280, height: 900 });
  // Where somebody is, pages change nothing.
  await page.evaluate(() => document.activeElement?.blur());
  if (folded) await page.evaluate(() => document.querySelectorAll('details').forEach(one => { one.open = false; }));
}

const heading = (page, name) => page.getByRole('heading', { name, exact: true }).waitFor();

async function claims(page, code, button) {
  await page.goto(`${story.a}/ui/claim`);
  await page.getByLabel('Code').fill(code);
  await page.getByRole('button', { name: button }).click();
  await page.waitForURL(`${story.a}/ui/consent`);
  await page.getByText('your key alone decides').waitFor();
}

async function signs(page, words, button = 'Yes, sign with my passkey') {
  await heading(page, 'Is this what you want?');
  const said = await page.locator('.words').textContent();
  if (!words.test(said)) wrong.push(`the words are: ${said}`);
  await page.getByRole('button', { name: button }).click();
  await page.waitForURL(`${story.a}/ui/consent`);
  await page.getByText('It is on the ledger').waitFor();
}

async function logsOut(page) {
  await page.getByRole('button', { name: 'Log out' }).click();
  await page.waitForURL(/\/ui\/login/);
}

async function patientAndRadiologist() {
  const patient = await person();
  await withPasskeys(patient);
  await patient.goto(`${story.a}/ui/claim`);
  await judged(patient, 'claim');
  // A code that is too short is said to be before any passkey is made.
  await patient.getByLabel('Code').fill('ABCDE-FGHJK-MNPQR-STVWX-YZ01');
  await patient.keyboard.press('Enter');
  await patient.getByText('The code has 25 letters and digits').waitFor();
  await claims(patient, story.code.toLowerCase().replaceAll('-', ' '), 'Make a passkey and begin');
  step('claimed');
  await heading(patient, 'Waiting for you (0)');
  await judged(patient, 'consent-empty');

  const radiologist = await person({ expected: ['404 (Not Found)'] });
  await radiologist.goto(`${story.b}/ui/requests`);
  await radiologist.getByLabel('Your token').fill(story.token);
  await radiologist.keyboard.press('Enter');
  await heading(radiologist, 'Asked (0)');
  await radiologist.getByLabel('The study\'s name on the ledger').fill(story.study);
  await radiologist.getByRole('button', { name: 'Ask' }).click();
  await radiologist.getByText('Its owner decides').waitFor();
  await heading(radiologist, 'Asked (1)');
  await judged(radiologist, 'requests');
  step('asked');

  // The page is open and shows by itself that somebody asks.
  await heading(patient, 'Waiting for you (1)');
  await judged(patient, 'consent-asked');
  await patient.getByRole('button', { name: 'Allow', exact: true }).first().click();
  await heading(patient, 'Is this what you want?');
  await judged(patient, 'sign');
  await signs(patient, /^St Elsewhere, Radiology may see CT of .*: all images, until .*, for treatment\.$/);
  await heading(patient, 'Allowed now (1)');
  await judged(patient, 'consent-allowed');
  step('allowed');

  await radiologist.locator(`a[href="/ui/studies/${story.uid}"]`).waitFor();
  await radiologist.goto(`${story.b}/ui/studies/${story.uid}`);
  await radiologist.locator('img.sharp').first().waitFor();
  await radiologist.waitForFunction(() => [...document.querySelectorAll('img.sharp')].some(one => one.complete && one.naturalWidth > 0));
  const seen = await radiologist.evaluate(async uid => {
    const answer = await fetch(`/dicomweb/studies/${uid}/instances`);
    return answer.ok ? (await answer.json()).length : answer.status;
  }, story.uid);
  if (seen !== story.images) wrong.push(`the radiologist sees ${seen} of ${story.images} images`);
  step('seen');

  await patient.getByText('Stop', { exact: true }).click();
  await patient.getByRole('button', { name: 'Stop access' }).click();
  await signs(patient, /^St Elsewhere, Radiology may not see CT of .* any more\.$/);
  await heading(patient, 'Allowed now (0)');
  await patient.locator('.badge', { hasText: 'stopped' }).waitFor();
  step('stopped');
  const gone = () => radiologist.evaluate(async uid => (await fetch(`/dicomweb/studies/${uid}/instances`)).status, story.uid);
  const until = Date.now() + PATIENCE;
  let status = await gone();
  while (![204, 404].includes(status) && Date.now() < until) {
    await new Promise(done => setTimeout(done, 200));
    status = await gone();
  }
  if (![204, 404].includes(status)) wrong.push(`after the stop the radiologist gets ${status}`);
  step('gone');

  await onPaper(patient);
  await patient.context().close();
  await radiologist.context().close();
}

// The key is written down; then it logs in without the passkey, and another passkey cannot decide in its place.
async function onPaper(patient) {
  await patient.getByText('Write my key down').click();
  await patient.getByRole('button', { name: 'Show the key of my passkey' }).click();
  await patient.getByText('Write it down, and close this page.').waitFor();
  const code = await patient.locator('[data-written]').textContent();
  await logsOut(patient);
  await judged(patient, 'login');
  await patient.getByRole('button', { name: 'Log in with my passkey' }).click();
  await patient.waitForURL(`${story.a}/ui/consent`);
  step('passkey again');
  await logsOut(patient);

  const elsewhere = await person();
  await withPasskeys(elsewhere);
  await elsewhere.goto(`${story.a}/ui/login`);
  await elsewhere.getByText('I have my key on paper').click();
  await elsewhere.getByLabel('Key on paper').fill(`${code.slice(0, -1)}${code.endsWith('0') ? '1' : '0'}`);
  await elsewhere.getByRole('button', { name: 'Use this key' }).click();
  await elsewhere.getByText('This is no key on paper').waitFor();
  await elsewhere.getByLabel('Key on paper').fill(code.toLowerCase());
  await elsewhere.getByRole('button', { name: 'Use this key' }).click();
  await elsewhere.waitForURL(`${story.a}/ui/consent`);
  await heading(elsewhere, 'My studies (1)');
  step('paper');
  // Whoever has the key can hand the study on; a passkey of somebody else signs nothing.
  await elsewhere.getByText('Hand a study to another key').click();
  await elsewhere.getByLabel('The other key').fill(`0x${'42'.repeat(20)}`);
  await elsewhere.getByRole('button', { name: 'Hand over' }).click();
  await heading(elsewhere, 'Is this what you want?');
  await elsewhere.evaluate(async site => {
    // A passkey that knows nothing of the patient's key.
    await navigator.credentials.create({
      publicKey: {
        challenge: new Uint8Array(32),
        rp: { name: site },
        user: { id: new Uint8Array(16), name: 'x', displayName: 'x' },
        pubKeyCredParams: [{ type: 'public-key', alg: -7 }],
        authenticatorSelection: { residentKey: 'required', userVerification: 'required' },
        extensions: { prf: {} },
      },
    });
  }, 'somebody');
  await elsewhere.getByRole('button', { name: 'Yes, sign with my passkey' }).click();
  await elsewhere.getByText('This is another key than the one that the study belongs to.').waitFor();
  step('another key');
  await elsewhere.context().close();
}

// Another patient, whose key is in a wallet: what it is asked to sign, somebody else's program signs.
async function withAWallet() {
  const [program, ...args] = story.wallet;
  const signer = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const answers = createInterface({ input: signer.stdout })[Symbol.asyncIterator]();
  const page = await person();
  await page.exposeFunction('askWallet', async asked => {
    signer.stdin.write(`${JSON.stringify(asked)}\n`);
    return JSON.parse((await answers.next()).value);
  });
  await page.addInitScript(() => {
    window.ethereum = {
      async request(asked) {
        const { result, error } = await window.askWallet(asked);
        if (error) throw { code: -32000, message: error };
        return result;
      },
    };
  });
  await claims(page, story.walletCode, 'Use the wallet in this browser');
  await page.getByText('Let a hospital see them that has not asked').click();
  await page.getByRole('combobox', { name: 'Hospital' }).selectOption({ label: 'St Elsewhere, Radiology' });
  await page.locator('details[open]').getByLabel('They see').selectOption('preview');
  await page.locator('details[open]').getByRole('button', { name: 'Allow' }).click();
  await signs(page, /small pictures only/, 'Use the wallet in this browser');
  await heading(page, 'Allowed now (1)');
  step('wallet');
  await page.context().close();
  signer.stdin.end();
}

try {
  await patientAndRadiologist();
  await withAWallet();
} catch (error) {
  wrong.push(String(error).slice(0, 1000));
  for (const context of browser.contexts()) {
    for (const page of context.pages()) wrong.push(`${page.url()}: ${(await page.locator('main').textContent().catch(() => '')).slice(0, 600)}`);
  }
} finally {
  await browser.close();
}
console.log(JSON.stringify(report, null, 1));
