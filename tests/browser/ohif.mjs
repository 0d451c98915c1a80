// Drives OHIF as its authors build it, in a headless Chromium, against a bridge that serves both: the list and its filters, a study opened and drawn,
// thumbnails, and every decoded frame compared with what another program decodes. No request may fail and no error be on the console.
//
//   node ohif.mjs BASE_URL EXPECTED.json [SCREENSHOT_PREFIX]
//
// EXPECTED.json is what py/one_study.py prints. Prints what was seen and what is wrong as JSON.
// TOOLS names the folder in which `make tools` put the driver of the browser.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { chromium } = createRequire(`${process.env.TOOLS}/browser/`)('playwright-core');

const [base, expectedFile, prefix] = process.argv.slice(2);
const expected = JSON.parse(readFileSync(expectedFile, 'utf8'));
const PATIENCE = Number(process.env.PATIENCE_MS ?? 90_000);
const LATE_SHEETS_MS = 400;
// Of the series, those with pictures that the viewer can draw.
const THUMBNAILS_MIN = 30;
const wrong = [];
const report = { studies: 0, filtered: 0, thumbnails: 0, drawn: false, frames: 0, syntaxes: [], requests: 0, wrong };

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--ignore-gpu-blocklist'],
});

function watch(page) {
  // Somebody who has used the viewer before: its tour for newcomers complains on the console when it begins before the first picture is there.
  page.addInitScript(() => localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour'])));
  // Style sheets that come later than scripts are what OHIF 3.12 does not begin with, unless the server has them come ahead.
  page.route('**/*.css', async route => {
    await new Promise(done => setTimeout(done, LATE_SHEETS_MS));
    // The page may have gone elsewhere meanwhile.
    await route.continue().catch(() => {});
  });
  page.on('console', message => {
    if (message.type() === 'error') wrong.push(`console: ${message.text().slice(0, 300)}`);
  });
  page.on('pageerror', error => wrong.push(`script: ${String(error).slice(0, 300)}`));
  page.on('response', response => {
    report.requests += 1;
    if (response.status() >= 400) wrong.push(`${response.status()} ${response.url()}`);
    if (!response.url().startsWith(base) && !response.url().startsWith('blob:') && !response.url().startsWith('data:')) {
      wrong.push(`another origin: ${response.url()}`);
    }
  });
  page.on('requestfailed', request => {
    // A viewer gives up prefetching when it is closed.
    if (request.failure()?.errorText !== 'net::ERR_ABORTED') wrong.push(`${request.failure()?.errorText} ${request.url()}`);
  });
}

async function list(page) {
  await page.goto(`${base}/`);
  await page.getByText('Viewed, Study').first().waitFor({ timeout: PATIENCE });
  report.studies = await page.locator('[data-cy^="studyRow"], tr[data-state], tbody tr').count();
  await page.goto(`${base}/?patientName=viewed`);
  await page.getByText('Viewed, Study').first().waitFor({ timeout: PATIENCE });
  report.filtered = 1;
  await page.goto(`${base}/?patientName=nobodyatall`);
  await page.getByText('No studies available').waitFor({ timeout: PATIENCE }).catch(() => wrong.push('a filter that matches nothing shows studies'));
}

// What is seen: not one colour all over.
async function isDrawn(page) {
  const canvas = page.locator('.cornerstone-canvas').first();
  await canvas.waitFor({ timeout: PATIENCE });
  return page.waitForFunction(() => {
    const seen = document.querySelector('.cornerstone-canvas');
    const { width, height } = seen ?? {};
    if (!width || !height) return false;
    const shades = new Set(seen.getContext('2d').getImageData(0, 0, width, height).data.filter((_, at) => at % 4 === 0));
    return shades.size > 16;
  }, null, { timeout: PATIENCE }).then(() => true, () => false);
}

// The values of the first frame as the viewer's decoder left them, before any scaling to units, as SHA-256 of 32-bit integers.
async function decoded(page, { series, instance }) {
  return page.evaluate(async ({ series, instance, root }) => {
    const { displaySetService } = window.services;
    const set = displaySetService.getActiveDisplaySets().find(one => one.SeriesInstanceUID === series);
    if (!set) return { why: 'no display set' };
    const of = (set.images ?? set.instances ?? []).find(one => one.SOPInstanceUID === instance) ?? set.instance;
    const imageId = of?.imageId ?? set.imageIds?.[0];
    if (!imageId) return { why: 'no image' };
    const image = await window.cornerstone.imageLoader.loadAndCacheImage(imageId);
    const pixels = image.voxelManager?.getScalarData?.() ?? image.getPixelData();
    const scaling = image.preScale?.scaled ? image.preScale.scalingParameters : undefined;
    const { rescaleSlope: slope = 1, rescaleIntercept: intercept = 0 } = scaling ?? {};
    const count = image.rows * image.columns;
    const samples = image.color ? 3 : 1;
    const stride = pixels.length / count;
    const values = new Int32Array(count * samples);
    for (let pixel = 0; pixel < count; pixel += 1) {
      for (let sample = 0; sample < samples; sample += 1) {
        values[pixel * samples + sample] = Math.round((pixels[pixel * stride + sample] - intercept) / slope);
      }
    }
    const digest = await crypto.subtle.digest('SHA-256', values.buffer);
    return { values: [...new Uint8Array(digest)].map(byte => byte.toString(16).padStart(2, '0')).join('') };
  }, { series, instance, root: base });
}

try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  watch(page);
  await list(page);
  if (prefix) await page.screenshot({ path: `${prefix}-list.png` });
  await page.goto(`${base}/viewer?StudyInstanceUIDs=${expected.study}`);
  report.drawn = await isDrawn(page);
  // Series come one by one, and their thumbnails after them. What never comes is reported where it is looked for.
  const series = expected.objects.filter(one => one.values).map(one => one.series);
  await page.waitForFunction(wanted => {
    const known = new Set(window.services.displaySetService.getActiveDisplaySets().map(set => set.SeriesInstanceUID));
    return wanted.every(uid => known.has(uid));
  }, series, { timeout: PATIENCE }).catch(() => {});
  await page.waitForFunction(least => document.querySelectorAll('[data-cy="study-browser-thumbnail"] img').length >= least, THUMBNAILS_MIN,
    { timeout: PATIENCE }).catch(() => {});
  report.thumbnails = await page.locator('[data-cy="study-browser-thumbnail"] img').count();
  if (prefix) await page.screenshot({ path: `${prefix}-study.png` });
  for (const object of expected.objects.filter(one => one.values)) {
    const { values, why } = await decoded(page, object).catch(error => ({ why: String(error).slice(0, 200) }));
    if (values === object.values) {
      report.frames += 1;
      if (!report.syntaxes.includes(object.syntax)) report.syntaxes.push(object.syntax);
    } else {
      wrong.push(`${object.file} (${object.syntax}): ${why ?? 'other values'}`);
    }
  }
  await page.close();
} catch (error) {
  wrong.push(String(error).slice(0, 500));
  if (prefix) await browser.contexts()[0]?.pages()[0]?.screenshot({ path: `${prefix}-failed.png` });
} finally {
  await browser.close();
}
console.log(JSON.stringify(report, null, 1));
