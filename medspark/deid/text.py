"""Descriptors made safe: an allow-list of words for free text, a list of refusals for technical names.

The rule of `clean_text`, in order:

1. A text with an e-mail address, a web address, a caret (DICOM's name separator) or a date in any notation loses that whole stretch.
2. The rest is cut into tokens at blanks and punctuation. A token is kept when it is (a) a word of `VOCABULARY`, (b) a number of at most four
   digits, with a decimal part or not, alone or with a unit, or a product of such (``2x1.5mm``), (c) a kernel, coil or sequence code of a known shape
   (``B30f``, ``T2w``, ``L5``, ``tse3d1``), (d) several of these run together by ``_ - / +`` and the like, (e) a
   word of (a) with up to three digits (``ROI2``), or an idiom that a cut would turn round (``w/o``).
3. A personal title (Dr, Mr, Prof, ...) takes the next two tokens with it, whatever they are; so do words that announce an identity
   (``patient``, ``name``, ``MRN``, ``born``, ...).
4. Everything else goes: what is not known to be harmless could be a name. Four-digit numbers that could be years (1900-2099) go too.
5. None is returned when no letter or nothing at all is left.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_TEXT = 256  # characters looked at; PS3.5 gives LO 64, and longer descriptions are letters about the patient
LONGEST_NUMBER = 4  # digits; five and more may be ids, postal codes or phone numbers

_WORDS = """
abd abdomen abdominal abdo abdpel abdpelvis acetabulum acl acom adc adenoids adrenal adrenals aif airway alveolar anatomic anatomical anatomy angio
angiogram angiography angle angled ankle ankles anterior aorta aortic aortobifemoral ap apex apical appendix arch area arm arms arterial arteries artery
arthro arthrogram arthrography articular ascending asl atlas atrial atrium attenuation auto av avg average averaged axial axilla axillary axis ax bag
balance barium base baseline basal basilar bh biceps bicoronal bifurcation bilateral bilat biliary biopsy bladder blade blood body bold bolus bone bones
bony bowel brachial brachium brain brainstem branch breast breasts breath breathhold breathing brightspeed bronchi bronchial bronchus bucky bulb
butterfly bw ca calc calcaneus calcification calcium calf calibration cap cardiac cardio carina carotid carotids carpal cartilage caudal caudo cavity cbct
cbf cbv cc ccta ce cecum celiac cemra central cerebellar cerebellum cerebral cerebrum cervical cervix cest chest chestabd chestabdpel child chondral cine
circle cisternography clavicle clear clinical cmr coarse coccyx coil colon colonography color colour column combined combo common complete composite
compression cone contrast control cor coronal coronary coronaries corrected correction cortex cortical cow cr cranial cranio craniocaudal craniospinal
cranium csf csi cspine ct cta ctac ctdi ctp ctv cube cumulative curved cut cxr cyst cystogram cysto dce decubitus deep default deformity delay delayed delta
dental derived descending det detail diagnosis diagnostic diaphragm diastole diastolic diff difference diffusion digital dir direct discovery dist distal
dixon doppler dorsal dose double dr drive dsa dsc dti dual dualenergy duct dwi dx dynamic early echo echocardiography ecg edge effective elbow elbows elliptic
end endo endoscopy enh enhanced enhancement ep epi epidural epigastric erect esophagus ethmoid ex exam examination exp expanded expiration expiratory
expir extended extension external extra extracranial extremity extremities eye eyes face facial fast fat fatsat fatsuppressed fb fbp fdg feet female femoral
femur fetal fetus fgre fibroid fibula field fiesta filter filtered finding fine finger fingers first fissure flair flash flex flexion flip flow fluid
fluoro focal focus follow follow-up followup foot foramen forearm four fourth fov frame frames frfse free freebreathing frontal fs fse full function functional
fundus fused fusion gad gadolinium gallbladder gamma gastric gastro gated gating gd generic gi gland glands gradient gravity gray gre grey groin gynecology haste
half hand hands hard hd he head heart helical hemi hemispheric hepatic hepatobiliary hernia hi high hilar hilum hip hippocampal hippocampus hips hr hrct
humeral humerus hypophysis iac iacs ic icbm icu ideal idose ileum iliac illumination im image imaging implant in inc index inf inferior infra ingestion injection inner
inphase insp inspiration inspiratory inst int interactive intermediate internal interp interpolated intestine intra intracranial intravenous inv inverse inversion iodine
iliofemoral ip ir irregular isotropic iterative iv ivc ivp jaw jejunum joint joints jugular k kernel kidney kidneys knee knees kub kv kvp l labrum large larynx
lat late lateral lava le left leg legs length lens lesion level lge ligament limb limited line lingual liver lo lobe loc local localiser localizer locator
loop loops lordotic lossless lossy low lower lspine lt lumbar lumbo lumbosacral lung lungs lymph m ma mag magn magnetic magnetization magnitude male mammary
mammo mammogram mammography mandible manual map mapping maps marrow mas mask mass mastoid mastoids maxilla maxillary maxillofacial maximum mean measurement
median medial mediastinal mediastinum medium medulla meniscus merge merged mesenteric metal metastasis mets mid middle midline min minimum minip mip mips mixed
mlo mm mo mobile moco mode model molli mono monochrome monoenergetic motion movie mpr mprage mprs mr mra mrcp mri mrs mrv mt mtt multi multiecho multiphase
multiplanar multislice muscle muscles myelogram myelography myocardial myocardium nac narrow nasal nasopharynx native navel navigator nc neck nerve neuro neutral
nipple nn no node nodes nodule noise non noncon noncontrast none nonenhanced normal normalized nose nuclear oblique obl ob occipital ocular odontoid
off om ophthalmic opp opposed opt optic optical optimized oral orbit orbital orbits orig original oropharynx orthopedic os osseous osteo out outer outphase
ovary oxygen p pa palate pancreas pancreatic panoramic paranasal parallel parametric parathyroid parenchyma parietal parotid part partial pass passive patella patellofemoral
path pathology pc pca pcasl pd pdw peak pediatric pedi pelvic pelvis penis perc perfusion peri pericardium perineum peripheral peritoneum pet petct petrous phantom pharynx
phase phases phlebography phleb pilot pituitary placenta plain plane plaque plain plantar plasma platinum pleura pleural plus pneumonia popliteal port portable portal
portovenous pos position positioning post posterior postcon postcontrast pre precon precontrast prep prescan preview primary profile prone propeller prostate proton
protocol proximal ptv pulmonary pulse pv pyelogram q qualitative quality quantification quant quantitative quick quiet r rad radial radiograph radiography radius ramp range
rapid rate ratio raw real recon reconstructed reconstruction rectal rectum reduced ref reference reformat reformatted reformats reg region registered regular relative relaxed renal rep
repeat reprocessed res rescan resolution resp respiratory rest restore resting restricted result results resting retro retroperitoneum reverse rf rib ribs right roi room rot
rotated rotating rotation routine rpt rt runoff sacral sacroiliac sacrum safire sag sagittal sagital sample sat saturation save scalp scan scanogram scans scapula
scaphoid sciatic scintigraphy sclerosis scoliosis score scoring scout screen screening sd se sec secondary segment segmentation segmented sella semi sense sensitivity sequence sequential
serial series set sft shape sharp shim short shoulder shoulders shunt si side sign signal simple single sinus sinuses sinogram sinusoidal skeletal skeleton skin skull sl slab slice
slices slide slow small smooth smoothed sms soft softtissue source space spair spatial spc spe specimen spectral spectro spectroscopy spgr sphenoid spin spinal spine spiral spleen splenic split spoiled
ss sshe ssfp ssfse ssh stack stage stain standard standing static std stenosis step stereo sternoclavicular sternum stir stitch stitched stomach strain stress stroke study sub subclavian subcutaneous submandibular subtracted
subtraction sum super superficial superior supine supp suppressed suppression supra supraclavicular surface survey susceptibility suv svc swan swi symphysis syngo synthetic systole systolic t tail tangential target tarsal tavi tavr te technique temporal
temporary ten tendon tension test testis tests tfe tfl thalamus therapy thick thigh thighs thin third thoracic thoracoabdominal thoracolumbar thorax three threshold thrombosis throat through thrive thumb thymus thyroid ti tibia tibial tilt tilted time timing tirm tissue tlspine tm tmax
tmj toe toes tof tomo tomography tomosynthesis tongue tonsil top topo topogram tortuous total tr trabecular tracer trachea tracheal tract transfer transverse trauma treatment tra tri triceps trigger triggered trigone triphasic true trufi trufisp trunk tse tspine ttp tubes tumor tumour turbo two tympanic
tx u ulna ulnar ultra ultrasound umbilical un unenhanced unilateral uniform unit up upper upright ureter ureters urethra urinary urogram urography uro us uterus uterine v vagina valve var variable varicose vascular vastus vein veins vena
venogram venography venous venticle ventral ventricle ventricles ventricular vert vertebra vertebrae vertebral vesical vessel vessels vibe video view views virtual visceral vista vitreous vmi voice void volume volumetric vr vrt vs w wall wash washout water
waters wb wedge weight weighted whole wholebody wide width wilms window wip with without wo wrist wrists x xa xr xray y z zoom zygomatic zone
background foreground tissue nuclei nucleus isocenter plan structure struct rtstruct algo algorithm rgb hsv tile row number matrix pixel offset coordinate system multiframe
jpeg jls ijg bit bits factor progression selection value values point transform reversible irreversible conversion converted lossles encoded second daily weekly qa qc general iso
colonoscopy bronchoscopy cystoscopy daily created label labels annotation annotations vessels organ organs lymphnode lymphnodes artifact artefact bright dark light green blue yellow orange
purple cyan magenta pattern channel stain he ihc ki67 pas masson trichrome dapi hematoxylin eosin brightfield fluorescence macro micro biopsies resection core block section tma
abdomenpelvis abdomenandpelvis chestabdomen chestabdpelvis headneck neckchest neckchestabdomen neckchestabdpelv headneckchest ctspine tlspine lsspine sspine
tspine wholebody acjoint scjoint sijoint hipjoint upperarm lowerleg upperlimb lowerlimb upleg lowleg uparm loarm opticcanal skullbase bileduct pancbileduct
pancreatobiliary urinarytract urinarysystem iacs zygoma nosebones facialbones soft_tissue anus ribcage pelvicgirdle cardiovascular thoracolumbarspine lumbosacralspine cervicalspine
caucasian asian african hispanic latino nonhispanic unknown mixed indian pacific islander black
and at by for from of on or over per than then to under via
thoraxabdomen abdomenpelvis headneck neckchest cap tap kidneystone stone stones colitis crohn embolism pe dvt aneurysm dissection tumor cancer carcinoma metastases infarct ischemia hemorrhage hematoma fracture
nativ arteriell venoes portalvenoes spaet schaedel kopf hals abd becken lunge leber niere wirbelsaeule hws bws lws knie hwk bwk lwk schulter hueft huefte fuss sprunggelenk ellenbogen handgelenk gehirn herz weichteil knochen
crane cou abdomen pelvien rachis poumon foie genou hanche epaule cheville poignet sans avec craneo torax pelvis columna rodilla cadera hombro cerebro higado pulmon
iomeron omnipaque ultravist visipaque isovue optiray iopamidol iohexol iodixanol ioversol iopromide iomeprol gadovist dotarem magnevist multihance prohance primovist eovist omniscan gadavist clariscan gadobutrol gadoterate
fluorodeoxyglucose f18 ga68 tc99m i131 i123 psma dotatate fluciclovine florbetapir choline
lut hfs hfp ffs ffp linear sigmoid identity body lung_detail softtissue asir veo admire imr dlir mbir fc stnd chst boneplus ggo covid
"""

VOCABULARY: frozenset[str] = frozenset(_WORDS.split())
"""Harmless words of radiology and pathology, lower case: anatomy, planes, phases, sequences, reconstruction, agents, a few of German, French and
Spanish. Words that are also common family or given names (``Grace``, ``May``, ``Young``, ``Long``, ``Brown``, ``Rose``) are left out on purpose."""

_IDIOMS = frozenset("w/o w/ w/wo w/wout r/o s/p f/u i/o a/p p/a r/l l/r c/w w+wo w-wo w&wo".split())
"""Kept whole: cut at its stroke, "w/o contrast" would come back as "w contrast"."""

_TITLES = frozenset("dr drs doctor mr mrs ms miss mister prof professor herr frau mme mlle sr sra md phd rn sir madame monsieur".split())
_ANNOUNCERS = frozenset(
    "patient pat pt name names patientname patientid mrn id ids no. nr born birth dob birthdate geb phone tel fax mobil accession acc ssn address "
    "physician referring operator technologist tech radiologist reader author by: requested ordered".split()
)
_TAKEN_WITH = 2  # tokens that go with a title or an announcer: given and family name

_STRETCHES = re.compile(
    r"""
    \S*@\S*                                                     # e-mail
    | (?:https?://|www\.)\S*                                    # web address
    | \S*\^\S*                                                  # DICOM person name
    | \d+(?:\.\d+){3,}                                           # UIDs, network addresses
    | (?<!\d)\d{1,4}[./-]\d{1,2}[./-]\d{1,4}(?!\d)              # 3.4.1950, 1950-04-03, 04/03/50
    | (?<![a-z])(?:\d{1,2}[\s.,/-]*)?(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|m[aä]rz|apr(?:il)?|may|mai|june?|juni|july?|juli|aug(?:ust)?
      |sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)[\s.,/-]*\d{1,4}(?:[\s.,/-]+\d{2,4})?(?!\d)  # 4 Apr 1961, May 2004
    | \+?\d[\d\s()./-]{6,}\d                                    # phone numbers, ids in groups
    | (?<!\d)\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?!\d)           # clock times
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SPACES = re.compile(r"[\s,;:()\[\]{}\"'|=<>?!\\*]+")
_JOINTS = re.compile(r"([_/+&~#-]+|(?<!\d)\.|\.(?!\d))")
_UNIT = r"(?:mm|cm|m|um|µm|ms|msec|s|sec|secs|min|kv|kvp|kev|ma|mas|mgy|t|tesla|hz|khz|mhz|deg|°|%|ml|cc|mg|g|kg|mgi|mbq|mci|x|fps|px|hu|d|ch|st|nd|rd|th|w|f|s\/mm2)"
_NUMBER = re.compile(
    rf"[+-]?(?:\d{{1,{LONGEST_NUMBER}}}(?:\.\d{{1,4}})?|\.\d{{1,4}}){_UNIT}?(?:x\d{{1,4}}(?:\.\d{{1,4}})?{_UNIT}?){{0,2}}", re.IGNORECASE
)
_YEAR = re.compile(r"(?:(?:0?[1-9]|1[0-2])\.)?(?:19|20)\d\ds?")  # 1961, 04.1961, 1961s
_CODES = re.compile(
    r"""
    t[12](?:\*|w|wi|star|rho)?                                   # weightings
    | [bhiutdqj][fruvhk]?\d{2}[fsh]?(?:\\\d)?                    # Siemens kernels: B30f, Br40, I26s, Hr68, Bv36
    | fc\d{2} | y[abc] | [a-f]                                   # Canon, Philips kernels
    | [ctls]\d{1,2}                                              # vertebrae
    | b\d{1,4}                                                   # b values
    | te\d{1,3} | tr\d{1,4} | ti\d{1,4} | p\d | r\d | v\d{1,2}
    | [23]d | 4d | \d{1,2}\s?ch                                  # dimensions, chamber views
    | (?:ep2d|tse|tfl|fl|se|gre|tir|spc|ciss|epfid|epse|fse|ffe|tfe|ssfp|vibe|qtfl|qfl|medic|resolve)[23]d\d{0,2}
    | 1\.5t | 3\.0t | 7\.0t
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LETTER = re.compile(r"[A-Za-z]")


@lru_cache(maxsize=8192)
def clean_text(text: str | None) -> str | None:
    """The harmless tokens of a descriptor, joined by blanks; None when nothing is left (the rule stands at the head of this module).  PS3.15 E.3.5"""
    if not text:
        return None
    kept: list[str] = []
    taken = 0
    for token in _SPACES.split(_STRETCHES.sub(" ", text[:MAX_TEXT])):
        bare = token.strip("._-/+&~#").lower()
        if not bare:
            continue
        if (bare in _TITLES or bare in _ANNOUNCERS) and (bare not in VOCABULARY or token.endswith(".")):
            taken = _TAKEN_WITH
            continue
        if taken:
            taken -= 1
            continue
        cleaned = _clean_token(token)
        if cleaned:
            kept.append(cleaned)
    joined = " ".join(kept)
    return joined if _LETTER.search(joined) else None


def _clean_token(token: str) -> str:
    if _harmless(token) or token.lower() in _IDIOMS:
        return token
    parts = _JOINTS.split(token)
    if len(parts) == 1:
        return ""
    kept = [part for part in parts[::2] if part and _harmless(part)]
    whole = all(not part or _harmless(part) for part in parts[::2])
    return token.strip("_/&~#-") if whole else " ".join(kept)


def _harmless(token: str) -> bool:
    word = token.lower()
    if word in VOCABULARY:
        return True
    if _NUMBER.fullmatch(word):
        return not _YEAR.fullmatch(word)
    if _CODES.fullmatch(word) or (word.endswith("s") and len(word) > 4 and word[:-1] in VOCABULARY):
        return True
    return len(stem := word.rstrip("0123456789")) >= 3 and len(word) - len(stem) <= 3 and stem in VOCABULARY  # isovue300, plan1


_REFUSED = re.compile(
    r"""
    [@^]
    | \d{6}                                                      # ids, dates without separators
    | (?<!\d)\d{1,2}[./-]\d{1,2}[./-](?:19|20)\d\d(?!\d)
    | (?<!\d)(?:19|20)\d\d[./-]\d{1,2}[./-]\d{1,2}(?!\d)
    | (?<!\d)\d{1,2}/\d{1,2}/\d{2}(?!\d)
    | \b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*[\s.,-]+\d{1,2}[\s.,-]
    | https?:// | www\.
    | \b(?:mrs|prof|professor|herr|frau|mrn|dob|ssn)\b | (?-i:\b(?:Dr|Mr|Ms)\b | \b[DM][RS]\.\s?[A-Z])   # but not the modalities DR and MR
    | \b(?:patient|name|born|geb)\s*[.:=]
    """,
    re.VERBOSE | re.IGNORECASE,
)
MAX_TECHNICAL = 128  # characters; a maker's or a kernel's name is shorter


@lru_cache(maxsize=8192)
def technical_text(text: str) -> str | None:
    """A technical name (maker, model, kernel, version) unchanged, or None where it shows a date, a long number, an address or a title."""
    text = text.strip()
    return text if text and len(text) <= MAX_TECHNICAL and text.isprintable() and not _REFUSED.search(text) else None


_CODE_STRING = re.compile(
    r"[A-Z0-9_ .+/-]{1,32}"
)  # PS3.5 allows 16 and no punctuation; real files have 'M/R', 'MTF-4', 'FROM_IMAGE_PLANES'


@lru_cache(maxsize=8192)
def harmless_code(text: str) -> bool:
    """Does a code string look like a code? Upper case without long numbers, or words of the vocabulary; a typed-in name rarely does."""
    if len(text) > MAX_TECHNICAL or _REFUSED.search(text):
        return False
    return bool(_CODE_STRING.fullmatch(text)) or all(_harmless(part) for part in re.split(r"[\W_]+", text) if part)
