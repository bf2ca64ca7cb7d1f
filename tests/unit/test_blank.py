import numpy as np
from PIL import Image

from derma import blank


def test_the_middle_is_blanked_and_the_rest_is_kept(drawn, tmp_path):
    assert blank.main([str(drawn), str(tmp_path / "out"), "--share", "0.5"]) == 0
    file = next((drawn / "train" / "nevus").glob("*.jpg"))
    image = np.asarray(Image.open(file))
    blanked = np.asarray(Image.open(tmp_path / "out" / "train" / "nevus" / f"{file.stem}.png"))
    middle = np.zeros(image.shape[:2], bool)
    middle[12:36, 16:48] = True
    assert np.array_equal(blanked[~middle], image[~middle])
    assert np.allclose(blanked[middle], image[~middle].mean(0), atol=0.51)
    assert blank.main(["missing", str(tmp_path / "other")]) == 2
