"""Word lists of the reference rules: what carries no clinical meaning, and what turns it around.

Words are written in lower case and in the singular; ``text`` brings notes to the same form.
"""

from __future__ import annotations


def listed(words: str) -> frozenset[str]:
    """The words of a text, parted by white space."""
    return frozenset(words.split())


FILLERS = listed(
    """
    a an the this that these those there here it its itself he him his himself she her hers herself they them their
    we our us i my you your who whom whose which what and or as of in on at to for by with into onto upon per via
    is are was were be been being am has have had having do does did will would shall can could
    patient pt subject individual mr mrs ms also additionally furthermore moreover besides likewise too
    notably overall currently presently generally basically essentially certainly clearly indeed
    approximately about around roughly nearly circa overall well respectively then thus therefore hence accordingly
    so just very quite rather really please reportedly apparently evidently today now otherwise
    importantly interestingly specifically particularly additionally tablet
    """
)
"""Dropped before two notes are compared."""

GENERAL = listed(
    """
    after all another any apart at away back based because before between both case cause clinic come concern
    condition consideration course day decision department due during each effort either emergency else especially
    event every evidence exam examination fact far feature few finding first following from further given good group
    hospital how however if important information initial instead issue item kind last least less long made
    make man many matter may member might most much must name near need needed new next number obtain occasion
    often once one only order original other out over own part past people period person physician place plan point
    possible present previous prior probable problem process purpose question rather reason recent regard relate
    report request respect result same second see seen several should significant similar since situation some soon
    specific start still study subsequent such suggest sure take team than though through throughout time together
    total toward type under until up use usual variety various view visit want way week when where whether while
    within work yet able according across again against ago almost along already although always among appear
    appearance appropriate area aspect available become begin believe bring call care certain change clear common
    complete consider consist consistent contain continue current date detail determine develop discuss down early
    ensure enter etc even ever expect experience explain family feel find follow form full general get go great
    happen help history home indicate involve keep know later lead leave let level life like likely little look
    manage management mean measure mention more month morning moment never nothing observe
    occur office old onset parent particular presentation provide put reach receive recently recommend record refer
    remain remember return reveal review said schedule seem series set short show shown side sign small
    something sometimes state stay step suspect tell tend test think today told toward treat treatment try turn
    understand undergo usually value wish year young yesterday tonight assess assessment evaluate evaluation
    confirm conclude describe ask answer advise agree inform notice identify perform give administer prescribe
    demonstrate examine presume visualize document notable remarkable doing remainder rest account
    """
)
"""Everyday wording: a change among these alone is wording, neither shown safe nor shown harmful."""

NEGATION = "no"
NEGATIONS = listed("no not without never none cannot neither nil deny lacking avoid refrain withhold")
"""All are read as ``no``."""

SCOPE_ENDS = listed("but however except although though yet")

GENDER = {**dict.fromkeys(listed("he him his himself"), "m"), **dict.fromkeys(listed("she her hers herself"), "f")}

SIDES = listed("left right bilateral unilateral ipsilateral contralateral")

BINDERS = SIDES | listed("before after until since during than from type stage grade")
"""Words that belong to the word after them: moving the one without the other changes what is said."""

TIME_ORDER = listed("before after until since")

HEADINGS = listed("hypersensitivity medication contraindicated intolerance")
"""Moving a drug from under one of these to under another changes what is said."""

REPORTING = listed("show find report evidence make appear diagnosis present give")
"""Say only that something was found or done: alone they neither add nor take away anything."""

RELATIONS = listed("replace switch change convert cause lead result secondary treat follow because due")
"""With one of these, other word order may mean something else."""

ANTONYMS = """
    left right; upper lower; superior inferior; anterior posterior; medial lateral; proximal distal; dorsal ventral
    normal abnormal; positive negative; present absent; increase decrease; elevated decrease; elevated low; high low
    elevated normal; increase normal; decrease normal; high normal; low normal; regular irregular; stable unstable
    improve worsen; improve deteriorate; acute chronic; benign malignant; hypertension hypotension; start stop
    stop restart; stop resume; continue stop; add stop; before after; internal external; dilated constricted
    gain loss; hyper hypo; tachycardia bradycardia; hyperkalemia hypokalemia; hypernatremia hyponatremia
    hypercalcemia hypocalcemia; hyperglycemia hypoglycemia; hyperthyroidism hypothyroidism; systolic diastolic
    artery vein; arterial venous; unilateral bilateral; left bilateral; right bilateral; ipsilateral contralateral
    mild severe; moderate severe; mild moderate; sensitive resistant; inhibitor agonist; antagonist agonist
    flexion extension; flexor extensor; abduction adduction; abductor adductor; primary secondary; early late
    male female; man woman; boy girl; mother father; son daughter; brother sister; wife husband; alive dead
    oral intravenous; increase reduce; sharp dull; symmetric asymmetric; intact impaired; active inactive
    complete partial; warm cold; dry wet; reactive nonreactive; alkalosis acidosis; metabolic respiratory
    thrombosis hemorrhage; ischemic hemorrhagic; major minor; morning evening; day night; daily weekly
    weekly monthly; daily monthly; agree decline; accept decline; admit discharge; soft rigid; visible invisible
    possible impossible; able unable; aware unaware; first last; ambulatory bedridden; insufficiency stenosis
    regurgitation stenosis; inpatient outpatient; remove keep
"""
"""Pairs that say the opposite; ``;`` and line ends part the pairs."""

LOOK_ALIKES = """
    hydroxyzine hydralazine; ileum ilium; ureter urethra; perineal peroneal; ureteral urethral; ileal iliac
    dysphagia dysphasia; dysphagia dysphonia; aphasia aphagia; prednisone prednisolone; clonidine clonazepam
    celecoxib citalopram; bupropion buspirone; metoprolol metoclopramide; metformin metronidazole
    vinblastine vincristine; dopamine dobutamine; glipizide glyburide; lamotrigine lamivudine
    cycloserine cyclosporine; chlorpromazine chlorpropamide; acetazolamide acetohexamide; tramadol trazodone
    quinine quinidine; ephedrine epinephrine; sulfadiazine sulfasalazine; penicillin penicillamine
    carboplatin cisplatin; fluoxetine paroxetine; amiodarone amlodipine; amiloride amlodipine
    rifampin rifaximin; levetiracetam levofloxacin; tolazamide tolbutamide; fentanyl sufentanil
    igg igm; iga igg; ocd ocpd; alt ast; ct mri; adenoma adenocarcinoma; palpation palpitation
    mucus mucous; humerus humeral; hepatic herpetic; facial fascial; malleus malleolus
"""
"""Near in letters, apart in meaning: never taken for a slip of the pen."""

ROUTES = listed(
    """oral intravenous intramuscular subcutaneous topical sublingual rectal vaginal inhaled nebulized intranasal
    intrathecal transdermal intraarticular intradermal intraosseous intravitreal epidural otic ophthalmic"""
)

FREQUENCIES = listed(
    "daily twice-daily thrice-daily four-daily every-4h weekly twice-weekly monthly every-other-day at-bedtime"
)

VERBS = listed("""
    show reveal demonstrate perform obtain start begin initiate commence continue discontinue stop cease halt
    administer prescribe recommend advise suggest suspect diagnose complain report present treat receive undergo
    schedule order evaluate assess examine note observe indicate consider confirm conclude determine refer consult
    transfer admit discharge develop occur appear seem look remain become return increase decrease reduce elevate
    improve worsen deteriorate resolve persist visit arrive bring come go take give make see tell ask answer say
    state describe mention explain inform instruct counsel counselling encourage reassure educate monitor measure
    check test follow place put remove insert apply use need require request plan decide agree refuse decline deny
    lack contain involve include exclude cause lead result associate relate accompany complicate precede detect find
    identify discover document record review read feel experience suffer live work smoke drink eat sleep walk wake
    lose gain notice wish want try help keep hold withhold avoid refrain allow prevent resume repeat replace switch
    restart change convert add provide supply get collect draw send culture grow last begin end finish complete
    visualize palpate auscultate percuss disclose exhibit display deem judge presume attribute get seek carry
    conduct trial
""")
"""Their inflected forms are read as the base form: tense is not what the judge decides on."""

CLINICAL_VERBS = listed(
    "reassure discharge admit culture smoke drink monitor treat transfer palpate auscultate percuss grow"
)
"""Verbs that are findings or management by themselves: not everyday wording."""

IRREGULAR = """
    shown:show began:begin begun:begin came:come went:go gone:go took:take taken:take gave:give given:give
    made:make saw:see seen:see told:tell said:say became:become underwent:undergo undergone:undergo brought:bring
    found:find felt:feel drew:draw drawn:draw sent:send grew:grow grown:grow led:lead lost:lose held:hold kept:keep
    withheld:withhold got:get sought:seek put:put read:read woke:wake woken:wake drank:drink ate:eat slept:sleep
"""
