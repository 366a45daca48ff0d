"""Phrases that say the same thing, as data: abbreviations, routes, frequencies, synonyms.

Each line is ``what it is read as: one way, another way, ...``. Matching is on whole words, longest
first, in lower case and the singular. A line must be right in every note: an abbreviation that is as
often something else has no place here.
"""

from __future__ import annotations

from collections.abc import Iterator


def entries(block: str) -> Iterator[tuple[str, list[str]]]:
    """(what it is read as, the ways to write it) of each entry of a table; entries end with a line or a ``;``."""
    for entry in block.replace(";", "\n").strip().splitlines():
        meaning, _, ways = entry.partition(":")
        yield meaning.strip(), [way.strip() for way in ways.split(",")]


ABBREVIATIONS = """
blood pressure: bp, b/p
heart rate: hr, pulse, pulse rate
respiratory rate: rr, resp rate, respirations, respiration, rate of respiration
room air: ambient air
serious illness: seriously ill
temperature: temp, body temperature
body mass index: bmi
year old: yo, y/o, yr old, years of age, year of age
history: hx, past history
past medical history: pmh, pmhx
family history: fh, fhx
history of: h/o
complain of: c/o
short breath: sob, shortness of breath, dyspnea, breathlessness, short of breath, dyspnoea
chest pain: cp
abdominal: abd
electrocardiogram: ecg, ekg, electrocardiography, electrocardiographic
echocardiogram: echo, echocardiography, tte echocardiogram
electroencephalogram: eeg, electroencephalography
electromyography: emg
chest x ray: cxr, chest xray, chest radiograph, chest radiography, x ray of the chest, radiograph of the chest, \
chest x-ray, x-ray of chest, x ray of chest
x ray: xray, x-ray, radiograph, radiography, plain film
computed tomography: ct, cat scan, computed tomographic, ct scan, computed tomography scan, \
computerized tomography, ct-scan
magnetic resonance imaging: mri, magnetic resonance, mr imaging, mri scan
ultrasound: ultrasonography, sonography, sonogram, ultrasonogram, u/s, ultrasound scan
white blood cell: wbc, leukocyte, white cell
red blood cell: rbc, erythrocyte
hemoglobin: hgb, hb
hematocrit: hct
platelet: plt
complete blood count: cbc, full blood count
blood urea nitrogen: bun
creatinine: cr
potassium: k+
sodium: na+
aspartate aminotransferase: ast, sgot
alanine aminotransferase: alt, sgpt
erythrocyte sedimentation rate: esr, red blood cell sedimentation rate
c reactive protein: crp, c-reactive protein
international normalized ratio: inr
prothrombin time: pt/inr
thyroid stimulating hormone: tsh, thyrotropin, thyroid-stimulating hormone
follicle stimulating hormone: fsh
luteinizing hormone: lh
human chorionic gonadotropin: hcg
prostate specific antigen: psa
cerebrospinal fluid: csf
hypertension: htn, high blood pressure, elevated blood pressure disorder
type 2 diabetes: t2dm, dm2, type 2 diabetes mellitus, type ii diabetes, type ii diabetes mellitus, \
diabetes mellitus type 2, type 2 dm, niddm
type 1 diabetes: t1dm, dm1, type 1 diabetes mellitus, type i diabetes, type 1 dm, diabetes mellitus type 1
diabetes: dm, diabetes mellitus
coronary artery disease: cad
congestive heart failure: chf
heart failure: hf, cardiac failure
chronic obstructive pulmonary disease: copd
chronic kidney disease: ckd
end stage renal disease: esrd
acute kidney injury: aki
gastroesophageal reflux disease: gerd
urinary tract infection: uti
upper respiratory infection: uri, upper respiratory tract infection
myocardial infarction: mi, heart attack
deep vein thrombosis: dvt, deep venous thrombosis
pulmonary embolism: pe, pulmonary embolus
atrial fibrillation: afib, a fib, a-fib, auricular fibrillation
cerebrovascular accident: cva, stroke
transient ischemic attack: tia
systemic lupus erythematosus: sle
multiple sclerosis: ms disease
human immunodeficiency virus: hiv
tuberculosis: tb
respiratory syncytial virus: rsv
group b streptococcus: gbs
intensive care unit: icu
emergency department: ed, er, emergency room, a&e, accident and emergency, emergency ward
operating room: or suite, operating theatre, operating theater
range of motion: rom
deep tendon reflex: dtr
loss of consciousness: loc
glasgow coma scale: gcs
intravenous immunoglobulin: ivig
nonsteroidal anti inflammatory drug: nsaid, non-steroidal anti-inflammatory drug, nonsteroidal antiinflammatory drug
selective serotonin reuptake inhibitor: ssri
angiotensin converting enzyme inhibitor: ace inhibitor, acei
proton pump inhibitor: ppi
trimethoprim sulfamethoxazole: tmp smx, tmp-smx, bactrim, septra, co-trimoxazole, cotrimoxazole, \
trimethoprim/sulfamethoxazole
lower extremity: le, lower limb
upper extremity: ue, upper limb
oxygen saturation: spo2, o2 sat, o2 saturation, sao2, sats
oxygen: o2
status post: s/p
follow up: f/u, followup, follow-up
with: w/
no: w/o, negative for, absence of, lack of, free of, no evidence of, no sign of, absent, no report of, \
unremarkable for, not given, is held, was held, are held, were held, on hold
diagnosis: dx, diagnose
laboratory: lab
treatment: tx, rx
symptom: sx
fracture: fx
because of: due to, owing to, secondary to, on account of, b/c, as a result of, because
prescription: script
nothing by mouth: npo
nausea and vomiting: n/v, nausea/vomiting
blood culture: bcx
urinalysis: ua, u/a, urine analysis
lumbar puncture: lp, spinal tap
caesarean section: c-section, c section, cesarean delivery, caesarean delivery, cesarean section, cesarean
dilation and curettage: d&c, d and c, d & c
incision and drainage: i&d, i and d, i & d
estimated gestational age: ega
polymerase chain reaction: pcr
antiretroviral therapy: art, cart, combination antiretroviral therapy
general practitioner: gp, primary care physician, pcp
obstetrician: ob gyn, ob/gyn, obgyn
alcohol: etoh
body weight: bw
visual acuity: va
arterial blood gas: abg
basic metabolic panel: bmp
comprehensive metabolic panel: cmp
partial thromboplastin time: ptt
gastrointestinal: gi
genitourinary: gu
cardiovascular: cv
"""

EXPRESSIONS = """
/ min: times a minute, times per minute, beats per minute, beat per minute, bpm, breaths per minute, breath per minute
of: of note, it is noted that, it was noted that, it should be noted that, it is worth noting that, \
it is important to note that, it was observed that, it is known that, it is of note that, at this time, \
at the present time, in addition, in general, as well as, in fact, needless to say, as expected
oral: po, by mouth, orally, p.o., per os, per oral, via the oral route
intravenous: iv, intravenously, i.v., through the vein
intramuscular: im, intramuscularly, i.m.
subcutaneous: sc, subq, sq, subcutaneously, sub-q
topical: topically
sublingual: sl, sublingually
rectal: rectally, per rectum
inhaled: by inhalation
daily: once daily, once a day, qd, q.d., every day, each day, one time daily, 1 time a day, once per day, per day, \
/ day, 1 time daily, q24h, every 24 hours, od daily, qday
twice-daily: bid, b.i.d., twice a day, twice daily, 2 times a day, 2 times daily, two times a day, two times daily, \
q12h, every 12 hours, twice per day, 2 times per day
thrice-daily: tid, t.i.d., three times a day, three times daily, 3 times a day, 3 times daily, q8h, every 8 hours, \
thrice daily, 3 times per day, 3 times / day
four-daily: qid, q.i.d., four times a day, four times daily, 4 times a day, 4 times daily, q6h, every 6 hours
every-4h: q4h, every 4 hours
weekly: once weekly, once a week, every week, each week, qweek, per week, every 7 days
twice-weekly: twice a week, twice weekly, 2 times a week, two times a week
monthly: once monthly, once a month, every month, each month
every-other-day: qod, every other day, every second day, on alternate days
at-bedtime: qhs, at bedtime, before bed, at night before sleep
as-needed: prn, as needed, as required, when needed, when required
immediately: stat, right away, at once, without delay, promptly
normal: unremarkable, within normal limits, wnl, no abnormality, no abnormalities, within the normal range, \
within normal range, not abnormal, nl, within normal limit, nothing abnormal, no abnormal findings, nothing unusual
no fever: afebrile, without fever, apyrexial
fever: febrile, pyrexia, pyrexial
present: come, arrive, visit
show: reveal, demonstrate, disclose, exhibit, display, indicate, is notable for, is remarkable for, is significant for
perform: do, done, carry out, conduct, undertake, carried out, undertaken
start: begin, initiate, commence, is placed on
stop: discontinue, cease, halt, terminate
give: administer, provide, supply
prescribe: is given a prescription for
advise: recommend, counsel, suggest
obtain: get, collect, acquire, draw
increase: raise, raised, rise
elevated: heightened
decrease: reduce, diminish, diminished, lower than normal, lowered
suspect: presume
examination: exam, physical examination, physical exam, on examination
physician: doctor, clinician, md, provider, doc
vital sign: vitals
man: gentleman, male patient, yo male, male
woman: lady, female patient, yo female, female
boy: male child, young boy
girl: female child, young girl
infant: baby
child: kid, children
man man: men
woman woman: women
kidney: renal
liver: hepatic
lung: pulmonary
heart: cardiac
before: prior to, previous to, ahead of
after: following, subsequent to, post
during: in the course of, throughout, over the course of
over the past: for the past, in the past, over the last, during the past, in the last, during the last, for the last, \
within the past, within the last
previously: in the past before, formerly
use: utilize, take, make use of
find: note, notice, observe, detect, identify, discover, see
report: state, say, mention, describe, endorse, complain, complain of, tell
evaluate: assess, work up, workup, evaluation of
need: require, necessitate
improve: get better, ameliorate
worsen: get worse, deteriorate, exacerbate
approximately: approx
emesis: vomit, vomiting, vomited, throw up, threw up
pruritus: itching, itchiness
edema: swelling, swollen
tender to palpation: tender on palpation, tender to touch, tenderness on palpation
erythema: redness
headache: head pain, cephalalgia, ha
syncope: fainting
bruise: contusion, ecchymosis, bruising
nosebleed: epistaxis
sore throat: pharyngeal pain
fatigue: tiredness
cancer: malignancy
tumor: neoplasm
myocardial: heart muscle
injection: shot
medication: medicine, drug, med
operation: surgery, surgical procedure
cigarette: cig
surgical: operative
urine: urinary
abdomen: belly, tummy, stomach area
elevation: raised level
hypersensitivity: allergy
miscarriage: spontaneous abortion
runny nose: rhinorrhea
difficulty swallowing: dysphagia, trouble swallowing, difficulty in swallowing
joint pain: arthralgia
muscle pain: myalgia
painful urination: dysuria, pain with urination, burning with urination, pain on urination
blood in urine: hematuria, bloody urine, blood in the urine
high fever: hyperpyrexia
low blood pressure: hypotension
fast heart rate: tachycardia, rapid heart rate
low blood sugar: hypoglycemia
high blood sugar: hyperglycemia
bloody stool: hematochezia
blood glucose: blood sugar
high cholesterol: hypercholesterolemia
over the counter: otc
"""

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
