"""More phrases that say the same thing, as data: everyday and clinical names, organisms, paired parts of the body.

The form is that of ``tables``. Only names for one and the same thing have a place here; a near neighbour
(hives and eczema, polyuria and frequency) has not.
"""

from __future__ import annotations

from openrlhf_medical.judge.rules.words import listed

EVERYDAY = """
urticaria: hives, nettle rash
hypersensitivity: allergic
no known medication hypersensitivity: nkda, nka, no known allergies, no known drug allergies, no drug allergies, \
no medication allergies
jaundice: icterus, icteric, jaundiced
diaphoresis: sweating, diaphoretic, sweaty
alopecia: hair loss
myopia: nearsightedness, nearsighted
enuresis: bedwetting, bed wetting
dyspepsia: indigestion
heartburn: pyrosis
cholelithiasis: gallstone, gallstones
nephrolithiasis: kidney stone, renal calculus, renal calculi, renal stone, kidney stones
tinnitus: ringing in the ears, ringing in the ear
diplopia: double vision, seeing double
photophobia: sensitivity to light, light sensitivity
polydipsia: excessive thirst
hemoptysis: coughing up blood, coughs up blood, bloody sputum
hematemesis: vomiting blood, vomits blood, bloody vomit, bloody vomiting
melena: black tarry stools, tarry stools, black stools
diarrhea: loose stools
cyanosis: bluish skin
pallor: paleness
pedal edema: edema of the feet, foot edema, swelling of the feet, swollen feet, edema of feet
palpitation: heart racing
vertigo: spinning sensation
insomnia: sleeplessness
anorexia: loss of appetite, poor appetite, lack of appetite
hyperkalemia: high potassium, elevated potassium
hypokalemia: low potassium
hypernatremia: high sodium, elevated sodium
hyponatremia: low sodium
hypercalcemia: high calcium, elevated calcium
hypocalcemia: low calcium
thrombocytopenia: low platelet count, low platelets
leukocytosis: elevated white blood cell count, high white blood cell count
leukopenia: low white blood cell count
hypothyroidism: underactive thyroid
hyperthyroidism: overactive thyroid
pertussis: whooping cough
varicella: chickenpox, chicken pox
herpes zoster: shingles
infectious mononucleosis: glandular fever
influenza: flu
tetanus: lockjaw
rubella: german measles
tinea corporis: ringworm
tinea pedis: athlete's foot
conjunctivitis: pink eye
hordeolum: stye
hemorrhoid: piles
verruca: wart
nevus: mole
thrombus: blood clot
anticoagulant: blood thinner
diuretic: water pill
amyotrophic lateral sclerosis: lou gehrig disease, lou gehrig's disease, als, motor neuron disease
hepatolenticular degeneration: wilson disease, wilson's disease
pheochromocytoma: phaeochromocytoma
costovertebral angle tenderness: cva tenderness, cvat
tonic clonic seizure: grand mal seizure, grand mal
absence seizure: petit mal seizure, petit mal
st elevation: st segment elevation, st-segment elevation
st depression: st segment depression, st-segment depression
st elevation myocardial infarction: stemi, st-elevation mi
non st elevation myocardial infarction: nstemi
left ventricular ejection fraction: lvef
ejection fraction: ef
forced expiratory volume in 1 second: fev1
packed red blood cell: prbc
nasogastric: ng
jugular venous distension: jvd, distended neck veins, jugular vein distension
lymph node: ln
sublingual: under the tongue, under tongue
subcutaneous: under the skin
intramuscular: into the muscle, in the muscle
intravenous: into the vein, into a vein
intranasal: into the nose, nasally, through the nose
inhaled: via inhaler
topical: on the skin, to the skin
every morning: qam, each morning
every evening: qpm, each evening
every night: nightly, each night, every-night
right: right sided, right-sided, right side, right hand side
left: left sided, left-sided, left side, left hand side
"""

DISEASES = """
giant cell arteritis: temporal arteritis
granulomatosis with polyangiitis: wegener granulomatosis, wegener's granulomatosis
iga nephropathy: berger disease, berger's disease
down syndrome: trisomy 21, down's syndrome
croup: laryngotracheobronchitis
adhesive capsulitis: frozen shoulder
lateral epicondylitis: tennis elbow
medial epicondylitis: golfer's elbow
bell palsy: idiopathic facial nerve palsy, idiopathic facial palsy, bell's palsy
trigeminal neuralgia: tic douloureux
addison disease: primary adrenal insufficiency, addison's disease
primary hyperaldosteronism: primary aldosteronism, conn syndrome, conn's syndrome
hashimoto thyroiditis: chronic lymphocytic thyroiditis, hashimoto's thyroiditis
atopic dermatitis: eczema, atopic eczema
osteoarthritis: degenerative joint disease, djd
pressure ulcer: decubitus ulcer, bedsore, bed sore
tinea versicolor: pityriasis versicolor
celiac disease: coeliac disease, gluten sensitive enteropathy, celiac sprue
stress cardiomyopathy: takotsubo cardiomyopathy, broken heart syndrome
lyme disease: lyme borreliosis
leprosy: hansen disease, hansen's disease
erythema infectiosum: fifth disease
roseola infantum: sixth disease, exanthem subitum, exanthema subitum
preeclampsia: pre-eclampsia, toxemia of pregnancy
obstructive sleep apnea: osa
irritable bowel syndrome: ibs
inflammatory bowel disease: ibd
benign prostatic hyperplasia: bph, enlarged prostate
polycystic ovary syndrome: pcos, polycystic ovarian syndrome
pelvic inflammatory disease: pid
attention deficit hyperactivity disorder: adhd
post traumatic stress disorder: ptsd
idiopathic thrombocytopenic purpura: itp, immune thrombocytopenia, immune thrombocytopenic purpura
acute respiratory distress syndrome: ards
diabetic ketoacidosis: dka
peripheral artery disease: pad, peripheral arterial disease
abdominal aortic aneurysm: aaa
subarachnoid hemorrhage: sah
acute coronary syndrome: acs
"""

PROCEDURES = """
appendectomy: appendicectomy, removal of the appendix
cholecystectomy: removal of the gallbladder
splenectomy: removal of the spleen
hysterectomy: removal of the uterus
thyroidectomy: removal of the thyroid
tonsillectomy: removal of the tonsils
coronary artery bypass graft: cabg, coronary artery bypass grafting, coronary bypass
percutaneous coronary intervention: pci
endoscopic retrograde cholangiopancreatography: ercp
upper endoscopy: esophagogastroduodenoscopy, egd, gastroscopy, upper gastrointestinal endoscopy
hemodialysis: hd
cardiopulmonary resuscitation: cpr
thoracentesis: pleural tap, pleurocentesis
arthrocentesis: joint aspiration
lumbar puncture: spinal puncture
contraindicated: must not be given, should not be given, must not be used, should not be used, must be avoided, \
should be avoided, is to be avoided
intolerance: intolerant
"""

OTHER_DRUG_NAMES = """
lidocaine: lignocaine; glyburide: glibenclamide; meperidine: pethidine, demerol; rifampin: rifampicin
acetaminophen: apap; isoproterenol: isoprenaline; nitroglycerin: glyceryl trinitrate, gtn, ntg
furosemide: frusemide; potassium chloride: kcl; magnesium sulfate: mgso4, magnesium sulphate; alteplase: tpa
penicillin g: benzylpenicillin; penicillin v: phenoxymethylpenicillin; cephalexin: cefalexin
levothyroxine: thyroxine, l-thyroxine; cholecalciferol: vitamin d3; ascorbic acid: vitamin c
folic acid: folate, vitamin b9; pyridoxine: vitamin b6; torsemide: torasemide; mesalamine: mesalazine
normal saline: 0.9 percent sodium chloride, 0.9% sodium chloride, 0.9% saline, isotonic saline, ns
"""

ORGANISM_NAMES = """
clostridioides difficile: clostridium difficile, c difficile, c diff, c. diff, c. difficile
streptococcus pneumoniae: pneumococcus, pneumococci
streptococcus pyogenes: group a streptococcus, group a strep, group a beta hemolytic streptococcus, gabhs
group b streptococcus: streptococcus agalactiae, group b strep
neisseria meningitidis: meningococcus, meningococci
neisseria gonorrhoeae: gonococcus, gonococci
staphylococcus: staph
streptococcus: strep
methicillin resistant staphylococcus aureus: mrsa
methicillin sensitive staphylococcus aureus: mssa, methicillin susceptible staphylococcus aureus
haemophilus influenzae: hemophilus influenzae, h flu
treponema pallidum: syphilis spirochete
mycobacterium tuberculosis: tubercle bacillus, mtb
varicella zoster virus: vzv
herpes simplex virus: hsv
epstein barr virus: ebv
cytomegalovirus: cmv
human papillomavirus: hpv
hepatitis a virus: hav
hepatitis b virus: hbv
hepatitis c virus: hcv
"""

BLOCKS = (EVERYDAY, DISEASES, PROCEDURES, OTHER_DRUG_NAMES, ORGANISM_NAMES)

PAIRED = listed("leg arm eye ear lung kidney hand foot knee side breast hip ankle wrist shoulder elbow flank base")
"""Of these there are two: *both* of them is *bilateral*."""


def paired_entries() -> str:
    """``bilateral leg: both legs, legs on both sides`` and so on, in the form of ``tables``."""
    return "\n".join(f"bilateral {part}: both {part}, {part} on both sides" for part in sorted(PAIRED))
