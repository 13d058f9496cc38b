"""Write the tables beside this file from the folder of public sets that README.md names."""

import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
ENDPOINTS = {
    "TOX21_AhR_LUC_Agonist": "AhR",
    "TOX21_Aromatase_Inhibition": "aromatase",
    "TOX21_ARE_BLA_agonist_ratio": "ARE",
    "TOX21_TR_LUC_GH3_Antagonist": "thyroid_receptor",
    "ATG_PXRE_CIS_up": "PXR",
    "ATG_NRF2_ARE_CIS_up": "NRF2",
}


def write_tables(data: Path) -> None:
    """Write all tables from the folder with the sets."""
    assays = pd.read_parquet(data / "assays" / "assays.parquet")
    of_assay = assays.groupby("assay")

    potency = of_assay.get_group("fsmol:CHEMBL3887333").query("kind == 'value'")
    concentration = (10 ** (9 - potency["value"])).map("{:.3g}".format).astype(float)
    sign = potency["relation"].astype(str).where(potency["relation"] != "=", "")
    exported = pd.DataFrame(
        {"SMILES": potency["smiles"], "IC50 (nM)": sign + concentration.map("{:g}".format)}
    )
    exported.insert(0, "Compound", [f"CPD-{row + 1:04d}" for row in range(len(exported))])
    exported.to_csv(HERE / "potency.csv", sep=";", index=False)

    cathepsin = of_assay.get_group("chembl:CHEMBL268")[["smiles", "value"]]
    cathepsin.rename(columns={"value": "potency"}).round(3).to_csv(
        HERE / "cathepsin.csv", index=False
    )

    named = {f"toxcast:{assay}": name for assay, name in ENDPOINTS.items()}
    rows = assays[assays["assay"].isin(named)]
    wide = rows.pivot_table(index="smiles", columns="assay", values="value").rename(columns=named)
    wide = wide[list(ENDPOINTS.values())].astype("Int64")
    wide.sample(600, random_state=0).to_csv(HERE / "toxcast.csv")
    single = wide["AhR"].dropna().drop(wide.sample(600, random_state=0).index, errors="ignore")
    single.sample(600, random_state=1).to_csv(HERE / "ahr.csv")

    jak1 = pd.read_csv(data / "activity" / "CHEMBL2835_Ki.csv").round(3)
    jak1 = jak1.rename(columns={"pact": "pKi", "part": "split"})
    jak1.to_csv(HERE / "jak1.csv", index=False)

    moses = pd.read_parquet(data / "pretraining" / "moses.parquet", columns=["smiles"])
    library = moses.sample(600, random_state=0).reset_index(drop=True)
    library.insert(0, "id", [f"LIB-{row + 1:04d}" for row in range(len(library))])
    library.to_csv(HERE / "library.csv", index=False)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
