"""A posterior without noise, for trainings whose results must not depend on random draws."""

from groupmorph_monai.probability import Posterior


class MeanPosterior(Posterior):
    def draw(self, mean, log_variance):
        return mean
