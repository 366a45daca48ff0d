"""Drugs and organisms, as data: brand names, how generic names end, names of organisms.

``BRANDS`` has the form of ``tables``: ``generic: brand, another name; ...``.
"""

from __future__ import annotations

from openrlhf_medical.judge.rules.words import listed

BRANDS = """
acetaminophen: tylenol, paracetamol, panadol, ofirmev; ibuprofen: advil, motrin, nurofen
naproxen: aleve, naprosyn; aspirin: asa, bayer aspirin, ecotrin, acetylsalicylic acid; atorvastatin: lipitor
rosuvastatin: crestor; simvastatin: zocor; pravastatin: pravachol; metformin: glucophage; glipizide: glucotrol
sitagliptin: januvia; exenatide: byetta; liraglutide: victoza; semaglutide: ozempic; empagliflozin: jardiance
insulin glargine: lantus; insulin lispro: humalog; lisinopril: zestril, prinivil; enalapril: vasotec
ramipril: altace; captopril: capoten; losartan: cozaar; valsartan: diovan; amlodipine: norvasc
nifedipine: procardia, adalat; diltiazem: cardizem; verapamil: calan; metoprolol: lopressor, toprol
atenolol: tenormin; propranolol: inderal; carvedilol: coreg; labetalol: trandate
hydrochlorothiazide: hctz, microzide; furosemide: lasix; spironolactone: aldactone; eplerenone: inspra
digoxin: lanoxin; amiodarone: cordarone, pacerone; warfarin: coumadin; heparin: hep-lock; enoxaparin: lovenox
dalteparin: fragmin; rivaroxaban: xarelto; apixaban: eliquis; dabigatran: pradaxa; clopidogrel: plavix
alteplase: activase; omeprazole: prilosec; esomeprazole: nexium; pantoprazole: protonix; lansoprazole: prevacid
ranitidine: zantac; famotidine: pepcid; ondansetron: zofran; metoclopramide: reglan; loperamide: imodium
sucralfate: carafate; albuterol: ventolin, proventil, salbutamol; fluticasone: flovent, flonase
budesonide: pulmicort; montelukast: singulair; tiotropium: spiriva; ipratropium: atrovent; omalizumab: xolair
prednisone: deltasone; methylprednisolone: solu-medrol, medrol; dexamethasone: decadron
hydrocortisone: cortef, solu-cortef; levothyroxine: synthroid, levoxyl; methimazole: tapazole
propylthiouracil: ptu; sertraline: zoloft; fluoxetine: prozac; paroxetine: paxil; citalopram: celexa
escitalopram: lexapro; venlafaxine: effexor; duloxetine: cymbalta; bupropion: wellbutrin, zyban
buspirone: buspar; trazodone: desyrel; mirtazapine: remeron; amitriptyline: elavil; clomipramine: anafranil
lithium: lithobid; quetiapine: seroquel; olanzapine: zyprexa; risperidone: risperdal; aripiprazole: abilify
haloperidol: haldol; clozapine: clozaril; ziprasidone: geodon; chlorpromazine: thorazine; alprazolam: xanax
lorazepam: ativan; clonazepam: klonopin; diazepam: valium; midazolam: versed; zolpidem: ambien; zaleplon: sonata
suvorexant: belsomra; methylphenidate: ritalin, concerta; amphetamine: adderall; atomoxetine: strattera
gabapentin: neurontin; pregabalin: lyrica; phenytoin: dilantin; fosphenytoin: cerebyx; carbamazepine: tegretol
valproate: depakote, valproic acid, divalproex; lamotrigine: lamictal; levetiracetam: keppra
topiramate: topamax; carbidopa levodopa: sinemet, levodopa-carbidopa; pramipexole: mirapex; donepezil: aricept
memantine: namenda; riluzole: rilutek; pyridostigmine: mestinon; sumatriptan: imitrex; morphine: ms contin
oxycodone: oxycontin; hydromorphone: dilaudid; fentanyl: duragesic; tramadol: ultram; naloxone: narcan
methadone: dolophine; buprenorphine: subutex; amoxicillin: amoxil
amoxicillin clavulanic acid: augmentin, amoxicillin-clavulanate, amoxicillin/clavulanic acid, co-amoxiclav
ampicillin sulbactam: unasyn; piperacillin tazobactam: zosyn; cephalexin: keflex; ceftriaxone: rocephin
cefepime: maxipime; azithromycin: zithromax, z-pak; clarithromycin: biaxin; doxycycline: vibramycin
ciprofloxacin: cipro; levofloxacin: levaquin; moxifloxacin: avelox; metronidazole: flagyl; vancomycin: vancocin
clindamycin: cleocin; nitrofurantoin: macrobid; linezolid: zyvox; rifaximin: xifaxan; fluconazole: diflucan
acyclovir: zovirax; valacyclovir: valtrex; oseltamivir: tamiflu; sofosbuvir: sovaldi
hydroxychloroquine: plaquenil; methotrexate: trexall; adalimumab: humira; etanercept: enbrel
infliximab: remicade; rituximab: rituxan; trastuzumab: herceptin; allopurinol: zyloprim; colchicine: colcrys
febuxostat: uloric; alendronate: fosamax; tamsulosin: flomax; terazosin: hytrin; finasteride: proscar, propecia
sildenafil: viagra; tadalafil: cialis; oxybutynin: ditropan; diphenhydramine: benadryl; cetirizine: zyrtec
loratadine: claritin; fexofenadine: allegra; hydroxyzine: vistaril, atarax; epinephrine: adrenaline, epipen
norepinephrine: noradrenaline, levophed; isotretinoin: accutane; botulinum toxin: botox
tranexamic acid: lysteda; desmopressin: ddavp; octreotide: sandostatin; leuprolide: lupron; tamoxifen: nolvadex
imatinib: gleevec; cyclosporine: neoral, ciclosporin; tacrolimus: prograf; mycophenolate: cellcept
azathioprine: imuran; phytonadione: vitamin k; cyanocobalamin: vitamin b12; thiamine: vitamin b1
hydrocodone acetaminophen: norco, vicodin; oxycodone acetaminophen: percocet; insulin aspart: novolog
cefazolin: ancef; meropenem: merrem; gentamicin: garamycin; bisacodyl: dulcolax; docusate: colace
polyethylene glycol: miralax; ketorolac: toradol; celecoxib: celebrex; meloxicam: mobic; cyclobenzaprine: flexeril
baclofen: lioresal; tizanidine: zanaflex; benztropine: cogentin; lisdexamfetamine: vyvanse; lurasidone: latuda
paliperidone: invega; ropinirole: requip; rivastigmine: exelon; galantamine: razadyne; primidone: mysoline
oxcarbazepine: trileptal; lacosamide: vimpat; ezetimibe: zetia; fenofibrate: tricor; niacin: niaspan
gemfibrozil: lopid; hydralazine: apresoline; clonidine: catapres; doxazosin: cardura; prazosin: minipress
isosorbide mononitrate: imdur; nitroglycerin: nitrostat; ticagrelor: brilinta; prasugrel: effient
torsemide: demadex; bumetanide: bumex; mesalamine: asacol; sulfasalazine: azulfidine; ustekinumab: stelara
leflunomide: arava; denosumab: prolia; risedronate: actonel; raloxifene: evista; letrozole: femara
anastrozole: arimidex; varenicline: chantix; disulfiram: antabuse; naltrexone: vivitrol; acamprosate: campral
terbinafine: lamisil; ketoconazole: nizoral; nystatin: mycostatin; ivermectin: stromectol; permethrin: elimite
mupirocin: bactroban; tobramycin: tobrex; latanoprost: xalatan; timolol: timoptic; pseudoephedrine: sudafed
guaifenesin: mucinex; dextromethorphan: delsym; fluticasone salmeterol: advair; budesonide formoterol: symbicort
levalbuterol: xopenex; pioglitazone: actos; glyburide: diabeta; glimepiride: amaryl; dulaglutide: trulicity
canagliflozin: invokana; dapagliflozin: farxiga; insulin detemir: levemir; liothyronine: cytomel
medroxyprogesterone: depo-provera; misoprostol: cytotec; oxytocin: pitocin; methylergonovine: methergine
clomiphene: clomid; bromocriptine: parlodel; cabergoline: dostinex; filgrastim: neupogen; zidovudine: retrovir
tenofovir: viread; lamivudine: epivir; emtricitabine tenofovir: truvada; raltegravir: isentress; entecavir: baraclude
ganciclovir: cytovene; famciclovir: famvir; remdesivir: veklury; amphotericin b: ambisome; voriconazole: vfend
caspofungin: cancidas; daptomycin: cubicin; tigecycline: tygacil; aztreonam: azactam; cefdinir: omnicef
cefuroxime: ceftin; ceftazidime: fortaz; ertapenem: invanz; minocycline: minocin; vincristine: oncovin
doxorubicin: adriamycin; cisplatin: platinol; paclitaxel: taxol; bevacizumab: avastin; pembrolizumab: keytruda
nivolumab: opdivo
"""

DRUG_ENDINGS = tuple(
    listed(
        """
        cillin mycin micin cycline floxacin azole cyclovir vudine navir tidine prazole setron olol pril sartan dipine
        statin gliptin gliflozin glutide formin zepam zolam barbital triptan tyline ipramine oxetine afil sone solone
        onide mab nib platin rubicin abine trexate parin xaban gatran grel semide thiazide lactone zosin steride caine
        curium phylline terol tropium lukast oxin profen coxib done codone morphone fentanil
        """
    )
)
SPECIES = listed(
    """
    coli difficile diff aureus epidermidis saprophyticus pneumoniae pyogenes agalactiae viridans bovis gonorrhoeae
    meningitidis trachomatis psittaci henselae aeruginosa pallidum burgdorferi pylori jejuni enterocolitica typhi
    sonnei flexneri dysenteriae faecalis faecium fragilis perfringens tetani botulinum monocytogenes influenzae
    catarrhalis pneumophila tuberculosis avium leprae burnetii rickettsii vaginalis albicans fumigatus neoformans
    gondii falciparum vivax malariae jirovecii marcescens mirabilis baumannii oxytoca pertussis
    """
)
"""Names after a genus, which is often one letter: *E. coli*."""

GENERA = listed(
    """
    neisseria streptococcus staphylococcus chlamydia mycoplasma bartonella salmonella vibrio pseudomonas escherichia
    klebsiella listeria haemophilus legionella clostridium clostridioides trichomonas gardnerella candida aspergillus
    cryptococcus toxoplasma plasmodium borrelia treponema rickettsia ehrlichia anaplasma mycobacterium helicobacter
    campylobacter yersinia shigella enterococcus bacteroides acinetobacter proteus serratia moraxella coxiella
    """
)
VIRUSES = listed(
    """
    adenovirus rotavirus norovirus parvovirus cytomegalovirus rubella measles mumps herpes virus picornavirus
    paramyxovirus rhinovirus influenza parainfluenza
    """
)
ORGANISMS = GENERA | VIRUSES | (SPECIES - {"diff"})
