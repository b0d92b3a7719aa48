"""A mask head with a mask-IoU branch, as a project of one's own would register it with detectron2."""

import torch
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead


@ROI_MASK_HEAD_REGISTRY.register()
class MaskIouHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head, and a predicted IoU from the mean of its features."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.iou = torch.nn.Linear(input_shape.channels, 1)

    def layers(self, x):
        for name, layer in self.named_children():
            x = x if name == "iou" else layer(x)
        return x

    def forward(self, x, instances):
        found = super().forward(x, instances)
        ious = torch.sigmoid(self.iou(x.mean(dim=(2, 3))))[:, 0]
        for instance, of_instance in zip(found, ious.split([len(one) for one in found]), strict=True):
            instance.pred_ious = of_instance
        return found
